"""Opinion scores that a network predicts from what is heard alone: DNSMOS, as the package speechmos has it."""

import numpy as np

from codec_jax.evaluate.metrics import Signal, checked_pair

_LOWEST = 1.0


def dnsmos_ovrl(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """DNSMOS P.835 (Reddy et al. 2022), overall quality, 1 .. 5, of audio at 16 kHz; see `_dnsmos`."""
    return _dnsmos(reference, estimate, sample_rate, "ovrl_mos")


def dnsmos_p808(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """DNSMOS P.808 (Reddy et al. 2021), overall quality, 1 .. 5, of audio at 16 kHz; see `_dnsmos`."""
    return _dnsmos(reference, estimate, sample_rate, "p808_mos")


def _dnsmos(reference: Signal, estimate: Signal, sample_rate: int, which: str) -> float:
    """The mean over windows of 9.01 s a second apart; what is shorter is repeated. Blind to the reference.

    NaN for a silent reference, 1 for a silent estimate of one that is not.
    """
    reference, estimate = checked_pair(reference, estimate)
    if not reference.any():
        return float("nan")
    if not estimate.any():
        return _LOWEST
    from speechmos import dnsmos  # and with it onnxruntime

    return float(dnsmos.run(np.clip(estimate, -1, 1), sr=sample_rate)[which])

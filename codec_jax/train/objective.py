"""What the codec is trained on: reconstruction terms of one forward pass, and what discriminators say of its audio."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from codec_jax.experiment import CTCConfig, LossConfig
from codec_jax.losses import adversarial, ctc, perceptual, spectral, waveform
from codec_jax.models import discriminators, phone_head
from codec_jax.models.discriminators import Judgement
from codec_jax.models.protocol import Forward

PyTree = Any
Terms = dict[str, Float[Array, ""]]
Listener = Callable[[Float[Array, "clip time"]], Mapping[int, Float[Array, "clip frame _"]]]


def reconstruction(
    forward: Forward, losses: LossConfig, sample_rate: int, fade: float | Array = 1.0, listen: Listener | None = None
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum and every term unweighted, by the names under which they are logged.

    fade: a factor of the weights, see `LossConfig.decay`. Terms of weight zero are neither computed nor logged. The
    spectral convergence of `stft` is measured against the decoded audio, as upstream calls it (spec TAAE section 6).
    listen: [clip, time] to features by layer, for `perceptual`, which does not fade.
    """
    real, fake = forward.target.swapaxes(1, 2), forward.audio.swapaxes(1, 2)  # [batch, channel, time]
    flat_real, flat_fake = (x.reshape(-1, x.shape[-1]) for x in (real, fake))
    computed = {
        "l1": (losses.l1, lambda: waveform.l1(flat_real, flat_fake)),
        "l2": (losses.l2, lambda: waveform.l2(flat_real, flat_fake)),
        "stft": (losses.stft, lambda: spectral.multi_resolution_stft(flat_real, flat_fake, losses.mrstft)),
        "mel": (losses.mel, lambda: spectral.mel_distance(flat_real, flat_fake, sample_rate).mean()),
    }
    terms = {name: term() for name, (weight, term) in computed.items() if weight}
    total = fade * sum((computed[name][0] * value for name, value in terms.items()), jnp.float32(0.0))
    if losses.perceptual and listen is not None:
        heard = [listen(perceptual.levelled(audio)) for audio in (jax.lax.stop_gradient(flat_real), flat_fake)]
        terms["perceptual"] = perceptual.feature_distance(*heard)
        total += losses.perceptual * terms["perceptual"]
    for name, value in forward.losses.items():
        if weight := getattr(losses, name):  # a weight of zero, and not zero times infinity
            total += weight * value
    return total, {**terms, **forward.losses}


def phone_loss(
    config: CTCConfig, head: PyTree, latents: Float[Array, "batch frame latent"], phones: Int[Array, "batch most"]
) -> Float[Array, ""]:
    """How badly the head reads the phones from the latents, see `losses.ctc`."""
    return ctc.ctc_loss(phone_head.logits(head, jax.lax.stop_gradient(latents) if config.detach else latents), phones)


class Verdict(NamedTuple):
    """One batch before the discriminators.

    terms: `adversarial`, `feature_matching` and `d_loss`, means or sums over judges as `LossConfig.gan` says, and the
    shares of logits on the right side, `d_accuracy_real` and `d_accuracy_fake`, means over judges. audio_gradient: of
    the generator's weighted terms with respect to the decoded audio. grads: of `d_loss` with respect to the
    discriminators' parameters (None where not asked for).
    """

    terms: Terms
    audio_gradient: Float[Array, "batch time channel"]
    grads: PyTree


def judge(
    config: discriminators.Config,
    params: PyTree,
    losses: LossConfig,
    real: Float[Array, "batch time channel"],
    fake: Float[Array, "batch time channel"],
    train: bool,
) -> Verdict:
    """Every judge in its turn, and both players' gradients of it, so that its feature maps live no longer than that.

    train: also the discriminators' own gradients. Nothing flows from one player into the other's parameters.
    """
    real, fake = jax.lax.stop_gradient((real, fake))
    names = discriminators.judges(config)
    divisor = len(names) if adversarial.GAMES[losses.gan].averaged else 1
    terms: list[Terms] = []
    shares: list[Terms] = []
    grads, audio_gradient = {}, jnp.zeros_like(fake)
    for name in names:
        found, right = _judge_once(config, params, losses, name, real, fake, train)
        terms.append(found.terms)
        shares.append(right)
        if train:
            grads[name] = jax.tree.map(lambda g: g / divisor, found.grads)
        audio_gradient += found.audio_gradient / divisor
        # One judge after the other: left alone, the compiler may hold the feature maps of several at once.
        audio_gradient, grads = jax.lax.optimization_barrier((audio_gradient, grads))
    totals = {**_over(terms, divisor), **_over(shares, len(names))}
    return Verdict(totals, audio_gradient, grads if train else None)


def _over(found: Sequence[Terms], divisor: int) -> Terms:
    """Term by term, the sum over judges divided by `divisor`."""
    return {name: jnp.stack([terms[name] for terms in found]).sum() / divisor for name in found[0]}


def _judge_once(
    config: discriminators.Config,
    params: PyTree,
    losses: LossConfig,
    name: str,
    real: Array,
    fake: Array,
    train: bool,
) -> tuple[Verdict, Terms]:
    """One judge hears each signal once; both players' losses are pulled back through the same two passes."""

    def judgement(own_params, audio):
        return discriminators.judge(config, {name: own_params}, name, audio)

    r, pull_real = jax.vjp(lambda own_params: judgement(own_params, real), params[name])
    f, pull_fake = jax.vjp(judgement, params[name], fake)
    game = adversarial.GAMES[losses.gan]
    d_loss, (d_real, d_fake) = jax.value_and_grad(lambda logits: game.discriminator(*logits))((r.logits, f.logits))
    terms: Terms = {"d_loss": d_loss}
    grads, audio_gradient = None, jnp.zeros_like(fake)
    if train:
        silent = jax.tree.map(jnp.zeros_like, r.features)  # the loss hears logits alone
        of_real, of_fake = pull_real(Judgement(d_real, silent))[0], pull_fake(Judgement(d_fake, silent))[0]
        grads = jax.tree.map(jnp.add, of_real, of_fake)
    if losses.adversarial_terms:
        (_, heard), answer = jax.value_and_grad(lambda f: generator_terms(losses, r, f), has_aux=True)(f)
        audio_gradient = pull_fake(answer)[1]
        terms |= heard
    return Verdict(terms, audio_gradient, grads), accuracy(r.logits, f.logits, game.boundary)


def generator_terms(losses: LossConfig, real: Judgement, fake: Judgement) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of the adversarial and the feature-matching term of one judge, and both unweighted."""
    game = adversarial.GAMES[losses.gan]
    if game.averaged:
        matched = adversarial.feature_matching(real.features, fake.features, normalize=losses.normalize_features)
    else:
        matched = adversarial.feature_distance(real.features, fake.features)
    terms = {"adversarial": game.generator(fake.logits), "feature_matching": matched}
    return losses.adversarial * terms["adversarial"] + losses.feature_matching * terms["feature_matching"], terms


def accuracy(real_logits: Array, fake_logits: Array, boundary: float) -> Terms:
    """Shares of the logits on the right side of `boundary`."""
    return {"d_accuracy_real": (real_logits > boundary).mean(), "d_accuracy_fake": (fake_logits < boundary).mean()}


def window(key: PRNGKeyArray, samples: int, *audio: Float[Array, "batch time channel"]):
    """The same random excerpt of every array, and a function that puts an excerpt's gradient back into its place."""
    time = audio[0].shape[1]
    if samples >= time:
        return audio, lambda gradient: gradient
    start = jax.random.randint(key, (), 0, time - samples + 1)
    excerpts = tuple(jax.lax.dynamic_slice_in_dim(x, start, samples, axis=1) for x in audio)

    def put_back(gradient):
        return jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(audio[0]), gradient, start, axis=1)

    return excerpts, put_back

"""The codecs. `FAMILIES` is the one table of them; `protocol.py` says what each owes."""

from codec_jax.models import esc, taae

FAMILIES = {"taae": taae, "esc": esc}

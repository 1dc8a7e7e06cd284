"""`python -m codec_jax` is `codec-jax`."""

import sys

from codec_jax.cli import main

sys.exit(main())

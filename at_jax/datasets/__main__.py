"""The command `python -m at_jax.datasets NAME [--data_dir=DIR]`: downloads, prepares and describes a data set."""

import sys

from at_jax.datasets import pipeline

sys.exit(pipeline.main())

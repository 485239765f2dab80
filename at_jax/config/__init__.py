"""Configurations: fields, checks, variants (the part of `--config` behind the colon) and command line.

`python -m at_jax.config` prints every field with its default, its values and its meaning.
"""

from at_jax.config.fields import default, flatten
from at_jax.config.validation import check
from at_jax.config.variants import only, small, smoke, variant

__all__ = ['check', 'default', 'flatten', 'only', 'small', 'smoke', 'variant']

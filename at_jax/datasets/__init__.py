"""Data sets as host arrays, and pure functions that make batches of them inside jit.

`autoaugment.augment` is the stronger augmentation of Consistency-AT. Importing this package imports none of
TFDS, TensorFlow and scikit-learn; `load` imports what it needs.
"""

from at_jax.datasets import autoaugment
from at_jax.datasets.pipeline import (
  Dataset,
  Split,
  augment,
  epoch_order,
  from_arrays,
  hold_out,
  load,
  subset,
  to_unit,
)

__all__ = ['Dataset', 'Split', 'augment', 'autoaugment', 'epoch_order', 'from_arrays', 'hold_out', 'load',
           'subset', 'to_unit']

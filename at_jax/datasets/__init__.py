"""Data sets as host arrays, and the pure functions that turn them into batches inside jit."""

from at_jax.datasets.autoaugment import augment as autoaugment_images
from at_jax.datasets.pipeline import Dataset, Split, augment, epoch_order, load, to_unit

__all__ = ['Dataset', 'Split', 'augment', 'autoaugment_images', 'epoch_order', 'load', 'to_unit']

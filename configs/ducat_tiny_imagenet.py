"""DUCAT on PGD-AT on Tiny-ImageNet (200 classes, 64×64), L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_tiny_imagenet.py
  python -m at_jax.main --config=configs/ducat_tiny_imagenet.py:smoke   two steps on digits

Reference: Wang et al., DUCAT, arXiv 2410.12671, and its released code.
From the reference: 64×64 images with a stride-2 stem; settings as in ducat_cifar10.py.
Ours: PreActResNet-18 and bfloat16. The test set is the official validation split, whose labels are
public.

Published: none; the Tiny-ImageNet table of the paper could not be read.
Measured: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dataset.name, c.dataset.num_classes = 'tiny_imagenet', 200
  c.dummy.enabled = True
  c.model.dtype = 'bfloat16'
  c.model.stem_stride = 2
  if arg == 'smoke':
    c = variants.smoke(c)
  variants.only(arg, 'smoke')
  return c

"""DUCAT on PGD-AT on CIFAR-100, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_cifar100.py
  python -m at_jax.main --config=configs/ducat_cifar100.py:small   minutes on two cores

Reference: Wang et al., DUCAT, arXiv 2410.12671, and its released code; settings as in ducat_cifar10.py.
Ours: PreActResNet-18, bfloat16 and the choice of the best checkpoint, as in ducat_cifar10.py. The
:small variant is a narrow network for few epochs: it shows the method at work, not what it can reach.

Published: none; the CIFAR-100 table of the paper could not be read.
Measured: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dataset.name, c.dataset.num_classes = 'cifar100', 100
  c.dummy.enabled = True
  c.model.dtype = 'bfloat16'
  return variants.variant(c, arg)

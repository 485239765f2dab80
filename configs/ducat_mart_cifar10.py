"""DUCAT on MART on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_mart_cifar10.py
  python -m at_jax.main --config=configs/ducat_mart_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wang et al., DUCAT, arXiv 2410.12671, and its released code.
From the reference: β = 6; schedule and weights as in ducat_cifar10.py. The most likely wrong class of
MART's boosted cross-entropy may be the dummy of y.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: none that could be read for this row.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 9.3, PGD-20 9.3, margin PGD-100 × 5 9.3, logit-scaled PGD-20 9.3, dummy-aware
    9.3, AutoAttack 9.3, released PGD-20 9.3, worst case 9.3.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'mart', 6.0
  c.dummy.enabled = True
  return variants.variant(c, arg)

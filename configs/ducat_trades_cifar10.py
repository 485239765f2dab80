"""DUCAT on TRADES on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_trades_cifar10.py
  python -m at_jax.main --config=configs/ducat_trades_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wang et al., DUCAT, arXiv 2410.12671, and its released code.
From the reference: β = 6; schedule and weights as in ducat_cifar10.py.
Ours: TRADES before the dummy classes begin (the released code has CE(f(x'), y) next to the KL there,
probably by mistake); PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training
images.

Published: none that could be read for this row.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 34.9, PGD-20 23.1, margin PGD-100 × 5 18.9, logit-scaled PGD-20 18.2,
    dummy-aware 18.7, AutoAttack 18.1, released PGD-20 24.4, worst case 18.1.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'trades', 6.0
  c.dummy.enabled = True
  return variants.variant(c, arg)

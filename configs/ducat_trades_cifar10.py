"""DUCAT on TRADES on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_trades_cifar10.py
  python -m at_jax.main --config=configs/ducat_trades_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Wang et al., DUCAT, arXiv 2410.12671, and its released code: β 6, schedule and weights as in
ducat_cifar10.py. Its plain phase has CE(f(x'), y) beside the KL, probably a slip; here it is TRADES
(ours). PreActResNet-18, bfloat16 and the choice of the best checkpoint on held-out training images
are ours.
Published: none that could be read for this row.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 34.9, PGD-20 23.1, margin
PGD-100 × 5 18.9, scaled PGD-20 18.2, dummy-aware 18.7, AutoAttack 18.1, authors' PGD-20 24.4,
worst case 18.1 (results/small_cifar10). The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'trades', 6.0
  c.dummy.enabled = True
  return variants.variant(c, arg)

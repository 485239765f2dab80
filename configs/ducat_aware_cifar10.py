"""DUCAT on CIFAR-10, L∞ 8/255, whose inner attack sees the deployed logits (ours).

  python -m at_jax.main --config=configs/ducat_aware_cifar10.py
  python -m at_jax.main --config=configs/ducat_aware_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: none for the inner attack; everything else is as in ducat_cifar10.py.
Ours: the inner attack runs on the folded logits. The released method attacks the raw 2C logits during
training, and so never meets an attack that knows the dummy classes.

Published: none.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 35.8, PGD-20 23.1, margin PGD-100 × 5 19.8, logit-scaled PGD-20 18.4,
    dummy-aware 19.4, AutoAttack 18.1, released PGD-20 25.0, worst case 17.8.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dummy.enabled = True
  c.dummy.attack_logits = 'folded'
  c.model.dtype = 'bfloat16'
  return variants.variant(c, arg)

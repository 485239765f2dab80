"""DUCAT on Consistency-AT on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_consistency_cifar10.py
  python -m at_jax.main --config=configs/ducat_consistency_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Wang et al., DUCAT, arXiv 2410.12671, and its released code: λ 1, temperature .5 over all 2C
logits, schedule and weights as in ducat_cifar10.py. The views are crops and mirrorings, from epoch
100 on also AutoAugment's policy and Cutout, as in consistency_cifar10.py. PreActResNet-18, bfloat16
and the choice of the best checkpoint on held-out training images are ours.
Published: none that could be read for this row.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 21.7, PGD-20 13.3, margin
PGD-100 × 5 8.5, scaled PGD-20 8.0, dummy-aware 8.4, AutoAttack 7.7, authors' PGD-20 17.4, worst
case 7.7 (results/small_cifar10). The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.consistency_temperature = 'consistency', 1.0, 0.5
  c.dataset.augment, c.dataset.autoaugment_start_epoch = 'autoaugment', 100
  c.dummy.enabled = True
  return variants.variant(c, arg)

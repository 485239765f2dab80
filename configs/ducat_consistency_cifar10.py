"""DUCAT on Consistency-AT on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_consistency_cifar10.py
  python -m at_jax.main --config=configs/ducat_consistency_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wang et al., DUCAT, arXiv 2410.12671, and its released code.
From the reference: λ = 1, temperature .5 over all 2C logits; schedule and weights as in
ducat_cifar10.py; views as in consistency_cifar10.py: crops and flips, from epoch 100 also AutoAugment's
policy and Cutout.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: none that could be read for this row.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 21.7, PGD-20 13.3, margin PGD-100 × 5 8.5, logit-scaled PGD-20 8.0, dummy-aware
    8.4, AutoAttack 7.7, released PGD-20 17.4, worst case 7.7.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.consistency_temperature = 'consistency', 1.0, 0.5
  c.dataset.augment, c.dataset.autoaugment_start_epoch = 'autoaugment', 100
  c.dummy.enabled = True
  return variants.variant(c, arg)

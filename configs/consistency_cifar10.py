"""Consistency regularisation on PGD-AT on CIFAR-10, L∞ 8/255: two attacked views should agree.

  python -m at_jax.main --config=configs/consistency_cifar10.py
  python -m at_jax.main --config=configs/consistency_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, and its released
code.
From the reference: λ = 1, temperature .5, PreActResNet-18, 200 epochs, × .1 at 100 and 150. As in the
example of the code (`autoaug_sche`), the views are crops and flips; from epoch 100 also AutoAugment's
CIFAR-10 policy and Cutout of half the width.
Ours: bfloat16; the best checkpoint is chosen from epoch 100 on, on held-out training images; the policy
on MNIST.

Published: PGD-10 53.5 (reported, ResNet-18, DUCAT's schedule).
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 44.0, PGD-20 29.4, margin PGD-100 × 5 20.9, logit-scaled PGD-20 20.3, AutoAttack
    20.0, worst case 20.0.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.consistency_temperature = 'consistency', 1.0, 0.5
  c.dataset.augment, c.dataset.autoaugment_start_epoch = 'autoaugment', 100
  c.epochs, c.optimizer.decay_epochs = 200, (100, 150)
  return variants.variant(c, arg)

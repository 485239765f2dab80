"""Consistency on PGD-AT on CIFAR-10, L∞ 8/255: two views, each attacked, that should agree.

  python -m at_jax.main --config=configs/consistency_cifar10.py
  python -m at_jax.main --config=configs/consistency_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Tack et al., Consistency Regularization for Adversarial Robustness, 2022, and its released
code: λ 1, temperature .5, PreActResNet-18, 200 epochs, ×.1 at 100 and 150. The two views are, as in
the code's example (`autoaug_sche`), crops and mirrorings; from epoch 100 on also AutoAugment's policy
for CIFAR-10 and Cutout of half the width. bfloat16 and the choice of the best checkpoint, from
epoch 100 on and on held-out training images, are ours; so is the policy on MNIST.
Published (reported, ResNet-18, DUCAT's schedule): PGD-10 53.5.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 44.0, PGD-20 29.4, margin
PGD-100 × 5 20.9, scaled PGD-20 20.3, AutoAttack 20.0, worst case 20.0 (results/small_cifar10).
The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.consistency_temperature = 'consistency', 1.0, 0.5
  c.dataset.augment, c.dataset.autoaugment_start_epoch = 'autoaugment', 100
  c.epochs, c.optimizer.decay_epochs = 200, (100, 150)
  return variants.variant(c, arg)

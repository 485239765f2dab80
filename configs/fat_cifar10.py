"""Friendly adversarial training (FAT) on CIFAR-10, L∞ .031: the attack stops τ steps past the boundary.

  python -m at_jax.main --config=configs/fat_cifar10.py
  python -m at_jax.main --config=configs/fat_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, 2020,
and its released code.
From the reference: 120 epochs, τ = 0, then 1 after 50 and 2 after 90 epochs, weight decay 2e-4, × .1
before the 60th and the 90th epoch. The released code also halves the learning rate before the 110th
epoch; that is left out here.
Ours: examples stop by masks; PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out
training images.

Published: WRN-32-10 (in GAIRAT's table): clean 89.16, PGD-20 51.24, PGD+ 46.14; AutoAttack (reported)
44.42.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 56.0, PGD-20 27.3, margin PGD-100 × 5 24.6, logit-scaled PGD-20 22.9, AutoAttack
    22.4, worst case 22.4.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.weight_decay = 120, 2e-4
  c.optimizer.decay_epochs = (59, 89)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.attack.friendly_taus, c.attack.friendly_epochs = (0, 1, 2), (50, 90)
  return variants.variant(c, arg)

"""GAIR-FAT on CIFAR-10, L∞ .031: GAIRAT with an attack that stops τ steps past the boundary.

  python -m at_jax.main --config=configs/gair_fat_cifar10.py
  python -m at_jax.main --config=configs/gair_fat_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, and its released
code.
From the reference: 120 epochs, λ = 0 from the 60th on, τ = 0, then 3 after 40 and 6 after 70 epochs,
weight decay 2e-4, × .1 before the 60th and the 90th epoch. The released code also halves the learning
rate before the 110th epoch; that is left out here.
Ours: examples stop by masks (the released code mixes up labels when it reorders a batch);
PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: WRN-32-10: clean 88.59, PGD-20 56.21, PGD+ 53.50.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 57.9, PGD-20 25.4, margin PGD-100 × 5 18.8, logit-scaled PGD-20 16.6, AutoAttack
    16.1, worst case 16.0.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.weight_decay = 120, 2e-4
  c.optimizer.decay_epochs = (59, 89)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.attack.friendly_taus, c.attack.friendly_epochs = (0, 3, 6), (40, 70)
  c.weights.kind, c.weights.lam, c.weights.start_epoch = 'geometry', 0.0, 59
  return variants.variant(c, arg)

"""Friendly adversarial training on CIFAR-10, L∞ .031: an attack that stops τ steps past the boundary.

  python -m at_jax.main --config=configs/fat_cifar10.py
  python -m at_jax.main --config=configs/fat_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, 2020, and
its released code: 120 epochs, τ = 0, then 1 after 50 and 2 after 90 epochs, weight decay 2e-4, ×.1
before the 60th and the 90th. The early stop is by masks here. The released code halves the learning
rate once more before the 110th epoch; that is left out. PreActResNet-18, bfloat16 and the choice of
the best checkpoint on held-out training images are ours.
Published, WRN-32-10 (in GAIRAT's table): clean 89.16, PGD-20 51.24, PGD+ 46.14; AutoAttack
(reported) 44.42.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 56.0, PGD-20 27.3, margin
PGD-100 × 5 24.6, scaled PGD-20 22.9, AutoAttack 22.4, worst case 22.4 (results/small_cifar10).
The whole form: not yet.
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

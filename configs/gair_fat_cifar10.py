"""GAIR-FAT on CIFAR-10, L∞ .031: GAIRAT with an attack that stops τ steps past the boundary.

  python -m at_jax.main --config=configs/gair_fat_cifar10.py
  python -m at_jax.main --config=configs/gair_fat_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, and its
released code: 120 epochs, λ = 0 from the 60th on, τ = 0, then 3 after 40 and 6 after 70 epochs,
weight decay 2e-4, ×.1 before the 60th and the 90th. The early stop is by masks here; the released
code mixes up labels when it re-orders a batch. It halves the learning rate once more before the
110th epoch; that is left out. PreActResNet-18, bfloat16 and the choice of the best checkpoint on
held-out training images are ours.
Published, WRN-32-10: clean 88.59, PGD-20 56.21, PGD+ 53.50.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 57.9, PGD-20 25.4, margin
PGD-100 × 5 18.8, scaled PGD-20 16.6, AutoAttack 16.1, worst case 16.0 (results/small_cifar10).
The whole form: not yet.
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

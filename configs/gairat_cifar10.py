"""GAIRAT on CIFAR-10, L∞ .031: an example weighs less the more attack steps it withstands.

  python -m at_jax.main --config=configs/gairat_cifar10.py
  python -m at_jax.main --config=configs/gairat_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, and its released
code.
From the reference: the ResNet-18 schedule: 100 epochs, × .1 before the 30th and the 60th epoch, weights
from the 30th on, λ = −1, weight decay 2e-4. ε = .031 and step size .007 are the code's defaults; the
paper's study of ResNet-18 has 8/255 and 2/255.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.
Other schedules of λ: --config.weights.later_lams and lam_epochs, or --config.weights.schedule=linear.

Published: WRN-32-10: clean 85.75, PGD-20 57.81; AutoAttack (reported) 42.48, and 33.4 for ResNet-18,
below PGD-AT's 44.9. The logits of examples with a small weight stay small, so do not rely on PGD alone:
use a logit-scaled or a margin attack.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 49.8 ± 0.5, PGD-20 29.6 ± 0.6, margin PGD-100 × 5
    19.9 ± 1.4, logit-scaled PGD-20 19.1 ± 1.1, AutoAttack 18.6 ± 1.4, worst case 18.6 ± 1.4.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.weight_decay = 100, 2e-4
  c.optimizer.decay_epochs = (29, 59)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.weights.kind, c.weights.lam, c.weights.start_epoch = 'geometry', -1.0, 29
  return variants.variant(c, arg)

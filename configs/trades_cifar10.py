"""TRADES on CIFAR-10, L∞ .031.

  python -m at_jax.main --config=configs/trades_cifar10.py
  python -m at_jax.main --config=configs/trades_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019, and
its released code.
From the reference: β = 6, 76 epochs, × .1 before the 75th epoch, weight decay 2e-4.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: WRN-32-10 (reported): clean 84.58, PGD-20 55.53, AutoAttack 52.02; ResNet-18: AutoAttack
48.1.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 51.1 ± 1.5, PGD-20 27.6 ± 0.9, margin PGD-100 × 5
    23.5 ± 1.3, logit-scaled PGD-20 23.3 ± 1.2, AutoAttack 23.2 ± 1.2, worst case 23.2 ± 1.2.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'trades', 6.0
  c.epochs, c.optimizer.weight_decay = 76, 2e-4
  c.optimizer.decay_epochs = (74,)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  return variants.variant(c, arg)

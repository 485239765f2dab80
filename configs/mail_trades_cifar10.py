"""MAIL-TRADES on CIFAR-10, L∞ .031: TRADES whose KL weighs more where the margin is small.

  python -m at_jax.main --config=configs/mail_trades_cifar10.py
  python -m at_jax.main --config=configs/mail_trades_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021,
and its released code.
From the reference: β = 5, b = 0, s = 2, weights after 76 of 120 epochs, learning rate .01, × .1 at 75,
90 and 100, weight decay 3.5e-3.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: AutoAttack 50.6 (reported, ResNet-18).
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 53.8, PGD-20 28.3, margin PGD-100 × 5 23.4, logit-scaled PGD-20 23.5, AutoAttack
    22.9, worst case 22.9.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'trades', 5.0
  c.epochs, c.optimizer.learning_rate, c.optimizer.weight_decay = 120, .01, 3.5e-3
  c.optimizer.decay_epochs = (75, 90, 100)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.weights.kind, c.weights.on, c.weights.start_epoch = 'margin', 'regulariser', 76
  c.weights.bias, c.weights.slope = 0.0, 2.0
  return variants.variant(c, arg)

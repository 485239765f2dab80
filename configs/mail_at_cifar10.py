"""MAIL-AT on CIFAR-10, L∞ .031: PGD-AT whose examples weigh more where the margin is small.

  python -m at_jax.main --config=configs/mail_at_cifar10.py
  python -m at_jax.main --config=configs/mail_at_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021,
and its released code.
From the reference: b = −.5, s = 10, attacks from x + .001 · N(0, 1), weights after 76 of 120 epochs;
the schedule of mail_trades_cifar10.py.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.

Published: AutoAttack 44.2 (reported, ResNet-18).
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 47.3, PGD-20 30.4, margin PGD-100 × 5 24.1, logit-scaled PGD-20 23.1, AutoAttack
    23.2, worst case 23.1.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.learning_rate, c.optimizer.weight_decay = 120, .01, 3.5e-3
  c.optimizer.decay_epochs = (75, 90, 100)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.attack.kind = 'gaussian'
  c.weights.kind, c.weights.start_epoch = 'margin', 76
  c.weights.bias, c.weights.slope = -0.5, 10.0
  return variants.variant(c, arg)

"""MAIL-TRADES on CIFAR-10, L∞ .031: TRADES whose KL weighs more where the margin is small.

  python -m at_jax.main --config=configs/mail_trades_cifar10.py
  python -m at_jax.main --config=configs/mail_trades_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Wang et al., Probabilistic Margins for Instance Reweighting in Adversarial Training, 2021,
and its released code: β 5, b = 0, s = 2, weights after 76 of 120 epochs, learning rate .01, ×.1 at
75, 90 and 100, weight decay 3.5e-3. PreActResNet-18, bfloat16 and the choice of the best checkpoint
on held-out training images are ours.
Published (reported, ResNet-18): AutoAttack 50.6.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 53.8, PGD-20 28.3, margin
PGD-100 × 5 23.4, scaled PGD-20 23.5, AutoAttack 22.9, worst case 22.9 (results/small_cifar10).
The whole form: not yet.
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

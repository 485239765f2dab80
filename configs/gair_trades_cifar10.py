"""GAIR-TRADES on CIFAR-10, L∞ .031: TRADES whose KL is shared between two attacks by geometry.

  python -m at_jax.main --config=configs/gair_trades_cifar10.py
  python -m at_jax.main --config=configs/gair_trades_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021, and its released
code for robust self-training, the only form of GAIR-TRADES in it.
From the reference: CE + 6 · [w · KL(p ‖ p'_KL) + (1 − w) · KL(p ‖ p'_margin)] with weights that are not
normalised, λ = 3, from half of training on.
Ours: no unlabelled data; the schedule of gairat_cifar10.py, except for the start of the weights;
PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images.
For weights on TRADES' KL, its cross-entropy or both, use --config.loss=trades with
--config.weights.on=regulariser, fit or both, and --config.weights.normalized.

Published: none without unlabelled data.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 53.1, PGD-20 28.2, margin PGD-100 × 5 24.8, logit-scaled PGD-20 24.3, AutoAttack
    24.1, worst case 24.1.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta = 'gair_trades', 6.0
  c.epochs, c.optimizer.weight_decay = 100, 2e-4
  c.optimizer.decay_epochs = (29, 59)
  c.attack.epsilon_255, c.attack.step_size_255 = .031 * 255, .007 * 255
  c.weights.kind, c.weights.lam, c.weights.start_epoch = 'geometry', 3.0, 50
  c.weights.on, c.weights.normalized = 'regulariser', False
  return variants.variant(c, arg)

"""GAIR-TRADES on CIFAR-10, L∞ .031: TRADES whose KL is shared between two attacks by geometry.

  python -m at_jax.main --config=configs/gair_trades_cifar10.py
  python -m at_jax.main --config=configs/gair_trades_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, 2021; of its TRADES
the released code has only the form for robust self-training, CE + 6 · [w · KL(p ‖ p'_KL) + (1 − w)
· KL(p ‖ p'_margin)] with weights that are not normalised, λ = 3, from half of training on. Here
without unlabelled data; the schedule of gairat_cifar10.py but for that start is ours.
PreActResNet-18, bfloat16 and the choice of the best checkpoint on held-out training images are
ours.
Weights on TRADES' KL, its cross-entropy or both are --config.loss=trades with
--config.weights.on=regulariser, fit or both, and --config.weights.normalized.
Published: none without unlabelled data.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 53.1, PGD-20 28.2, margin
PGD-100 × 5 24.8, scaled PGD-20 24.3, AutoAttack 24.1, worst case 24.1 (results/small_cifar10).
The whole form: not yet.
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

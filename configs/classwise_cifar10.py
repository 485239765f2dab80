"""CFA on CIFAR-10, L∞ 8/255: radii, TRADES' β and an average of epochs, all by class.

  python -m at_jax.main --config=configs/classwise_cifar10.py          AT + CFA
  python -m at_jax.main --config=configs/classwise_cifar10.py:trades   TRADES + CFA
  python -m at_jax.main --config=configs/classwise_cifar10.py:small    minutes on two cores
  :cifar100 and :mnist are the same method on other data, :trades-cifar100-small and so on cut down.

Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, and its released
code: PreActResNet-18, 200 epochs, ×.1 at 100 and 150, weight decay 5e-4, β 6, λ₁ .5 (TRADES .3, FAT
.7), λ₂ .5, factors from epoch 10 on, the average from epoch 50 on (decay .85, worst class .2 of 2 %
held out). Its code begins to average with the first epoch that meets the threshold, attacks PGD-AT
in train mode, averages BatchNorm's statistics, pads by reflection, and scores checkpoints on the
test set. bfloat16, attacks in inference mode, statistics estimated again, padding with zeros and
the choice of the best checkpoint, average plus worst class, on held-out training images are ours.
At :small no worst class comes near .2, so there the threshold is 0 and three epochs, all that are
left, are averaged (decay .5; ours).
FAT + CFA is --config.attack.friendly_taus="(3,)" --config.calibration.radius_base=.7.
Ours, besides: --config.weights.kind=class_wise, --config.calibration.temperature=True, and at
inference --config.inference.kind=bias or temperature.
Published, best checkpoint, AutoAttack average / worst class: AT 46.7 / 20.1, AT + EMA 49.6 / 21.3,
AT + CFA 50.1 / 24.4; TRADES 48.3 / 21.7, TRADES + EMA 49.7 / 24.2, TRADES + CFA 50.1 / 26.5. Clean:
AT 82.3, TRADES + CFA 80.4.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 50.5, PGD-20 29.8, margin
PGD-100 × 5 26.2, scaled PGD-20 24.7, AutoAttack 24.4, worst case 24.4; :trades-small: clean 51.8,
PGD-20 22.5, margin PGD-100 × 5 18.4, scaled PGD-20 18.0, AutoAttack 17.9, worst case 17.9
(results/small_cifar10). The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.decay_epochs = 200, (100, 150)
  c.calibration.radius, c.calibration.radius_base = True, 0.5
  c.optimizer.fair_decay = 0.85
  c.validate.choose_by = 'average_and_worst'
  if 'trades' in arg.split('-'):
    c.loss, c.calibration.beta, c.calibration.radius_base = 'trades', True, 0.3
  return variants.variant(c, arg, 'trades')

"""CFA on CIFAR-10, L∞ 8/255: radii, β of TRADES and an average of epochs, all by class.

  python -m at_jax.main --config=configs/classwise_cifar10.py
  python -m at_jax.main --config=configs/classwise_cifar10.py:trades   TRADES + CFA
  python -m at_jax.main --config=configs/classwise_cifar10.py:small    minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, and its released
code.
From the reference: PreActResNet-18, 200 epochs, × .1 at 100 and 150, weight decay 5e-4, β = 6, λ₁ = .5
(TRADES .3, FAT .7), λ₂ = .5, factors from epoch 10, average from epoch 50 (decay .85, robust accuracy
of the worst class at least .2 on 2 % held-out data).
Ours: bfloat16; attacks in inference mode; BatchNorm statistics are estimated again; zero padding; the
best checkpoint has the highest average plus worst-class accuracy on held-out training images. The
released code attacks PGD-AT in train mode, averages BatchNorm statistics, pads by reflection, begins to
average at the first epoch that meets the threshold, and scores checkpoints on the test set.
At :small no worst class comes near .2. There the threshold is 0, and the last three epochs are averaged
(decay .5; ours).
FAT + CFA: --config.attack.friendly_taus="(3,)" --config.calibration.radius_base=.7. Our extensions:
--config.weights.kind=class_wise, --config.calibration.temperature=True, and at inference
--config.inference.kind=bias or temperature.

Published: best checkpoint, AutoAttack average / worst class: AT 46.7 / 20.1, AT + EMA 49.6 / 21.3, AT +
CFA 50.1 / 24.4; TRADES 48.3 / 21.7, TRADES + EMA 49.7 / 24.2, TRADES + CFA 50.1 / 26.5. Clean: AT 82.3,
TRADES + CFA 80.4.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 50.5, PGD-20 29.8, margin PGD-100 × 5 26.2, logit-scaled PGD-20 24.7, AutoAttack
    24.4, worst case 24.4.
  :trades-small, seed 0: clean 51.8, PGD-20 22.5, margin PGD-100 × 5 18.4, logit-scaled PGD-20 18.0,
    AutoAttack 17.9, worst case 17.9.
  The full configuration: not measured yet.
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

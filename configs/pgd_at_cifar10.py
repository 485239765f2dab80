"""PGD-AT on CIFAR-10, L∞ 8/255 or L2 128/255: the baseline.

  python -m at_jax.main --config=configs/pgd_at_cifar10.py
  python -m at_jax.main --config=configs/pgd_at_cifar10.py:l2
  python -m at_jax.main --config=configs/pgd_at_cifar10.py:ema     exponential moving average of the weights
  python -m at_jax.main --config=configs/pgd_at_cifar10.py:swa     mean of the weights from the first decay on
  python -m at_jax.main --config=configs/pgd_at_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-swa-small.

Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018; schedule
and augmentation of Wang et al., DUCAT, arXiv 2410.12671.
From the reference: SGD .1, momentum .9, weight decay 5e-4, batch 128, 130 epochs, × .1 at 100 and 105.
The average of :ema moves by .005 a step, as in Gowal et al., 2020; :swa is Izmailov et al., 2018, from
the epoch on in which the learning rate falls.
Ours: PreActResNet-18 (DUCAT's network is ducat_cifar10.py:bottleneck), bfloat16; BatchNorm statistics
of averaged weights are estimated again.

Published: clean 82.92, PGD-10 51.3, AutoAttack 46.74 (reported, DUCAT's network). In L2 (logs of AWP's
released code, best): clean 88.80, PGD-20 69.15.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 48.2 ± 0.4, PGD-20 30.1 ± 0.6, margin PGD-100 × 5
    25.9 ± 1.2, logit-scaled PGD-20 25.0 ± 0.9, AutoAttack 24.8 ± 1.0, worst case 24.8 ± 1.0.
  :ema-small, seed 0: clean 47.2, PGD-20 29.7, margin PGD-100 × 5 26.7, logit-scaled PGD-20 26.0,
    AutoAttack 26.0, worst case 26.0.
  :l2-small, seed 0: clean 60.2, PGD-20 43.3, margin PGD-100 × 5 40.3, logit-scaled PGD-20 39.6,
    AutoAttack 39.6, worst case 39.6.
  :swa-small, seed 0: clean 47.9, PGD-20 31.0, margin PGD-100 × 5 26.7, logit-scaled PGD-20 26.0,
    AutoAttack 25.8, worst case 25.8.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  asked = arg.split('-')
  if 'ema' in asked:
    c.optimizer.ema_decay = .995
  if 'swa' in asked:
    c.optimizer.swa_start_epoch = 100
  if 'l2' in asked:
    c.attack.norm, c.attack.epsilon_255, c.attack.step_size_255 = 'l2', 128.0, 15.0
  return variants.variant(c, arg, 'l2', 'ema', 'swa')

"""N-FGSM on CIFAR-10, L∞ 8/255: one step from an example with noise of twice the radius.

  python -m at_jax.main --config=configs/n_fgsm_cifar10.py
  python -m at_jax.main --config=configs/n_fgsm_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training, 2022,
and its released code.
From the reference: PreActResNet-18, 30 epochs, batch 128, noise of 2 ε, a step of ε, no projection onto the
ball, a cyclic learning rate with its peak of .2 in the middle, weight decay 5e-4.
Ours: the attack sees the network in inference mode, bfloat16.

Published: none that could be read.
Measured (the first 1,000 test images, two CPU cores, results/passes_small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 46.8 ± 1.4, PGD-20 29.8 ± 1.0, fast AutoAttack
    24.6 ± 1.7, worst case 24.6 ± 1.7.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.attack.kind, c.attack.num_steps = 'n_fgsm', 1
  c.epochs, c.optimizer.schedule, c.optimizer.learning_rate = 30, 'cyclic', .2
  return variants.variant(c, arg)

"""FGSM-RS, fast adversarial training, on CIFAR-10, L∞ 8/255: one step from a random start.

  python -m at_jax.main --config=configs/fgsm_rs_cifar10.py
  python -m at_jax.main --config=configs/fgsm_rs_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wong et al., Fast Is Better Than Free: Revisiting Adversarial Training, 2020, and its released
code.
From the reference: PreActResNet-18, 15 epochs, batch 128, a step of 1.25 ε, a cyclic learning rate with its
peak of .2 in the middle, weight decay 5e-4.
Ours: the attack sees the network in inference mode, bfloat16, and the best checkpoint is chosen on held-out
training images.

Published: clean 86.06, PGD-50 × 10 46.06 (README of the released code).
Measured (the first 1,000 test images, two CPU cores, results/passes_small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 48.4 ± 1.7, PGD-20 28.8 ± 0.4, fast AutoAttack
    23.8 ± 0.5, worst case 23.8 ± 0.5.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.attack.kind, c.attack.num_steps = 'fgsm_rs', 1
  c.epochs, c.optimizer.schedule, c.optimizer.learning_rate = 15, 'cyclic', .2
  return variants.variant(c, arg)

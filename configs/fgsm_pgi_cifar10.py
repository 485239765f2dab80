"""FGSM-PGI on CIFAR-10, L∞ 8/255: one step from the perturbation of the epoch before.

  python -m at_jax.main --config=configs/fgsm_pgi_cifar10.py
  python -m at_jax.main --config=configs/fgsm_pgi_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Jia et al., Prior-Guided Adversarial Initialization for Fast Adversarial Training, 2022, and its
released code.
From the reference: 110 epochs, × .1 at epochs 100 and 105, λ = 10, a random start every 40 epochs, .6 on the
true class, weight decay 5e-4.
Ours: FGSM-EP, without the momentum over epochs of FGSM-MEP; the attack sees the network in inference mode;
PreActResNet-18, bfloat16; :small starts at random every three epochs.

Published: none that could be read.
Measured (the first 1,000 test images, two CPU cores, results/passes_small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 41.1 ± 1.0, PGD-20 28.3 ± 0.7, fast AutoAttack
    23.5 ± 0.3, worst case 23.5 ± 0.3.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.attack.num_steps = 'fgsm_pgi', 10.0, 1
  c.epochs = 110
  return variants.variant(c, arg)

"""PGD-AT with adversarial weight perturbation (AWP) on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/awp_cifar10.py
  python -m at_jax.main --config=configs/awp_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, and its
released code.
From the reference: γ = .01, PreActResNet-18, 200 epochs, learning rate × .1 at epochs 100 and 150.
Ours: bfloat16, and the best checkpoint is chosen on held-out training images.

Published: PGD-20 (logs of the released code): best clean 81.18, robust 55.39; last 81.65, 54.30.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, seed 0: clean 40.5, PGD-20 26.9, margin PGD-100 × 5 24.5, logit-scaled PGD-20 23.1, AutoAttack
    22.8, worst case 22.8.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.decay_epochs = 200, (100, 150)
  c.awp_gamma = .01
  return variants.variant(c, arg)

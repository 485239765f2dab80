"""PGD-AT with adversarial weight perturbation on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/awp_cifar10.py
  python -m at_jax.main --config=configs/awp_cifar10.py:small   minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, 2020, and its
released code: γ .01, PreActResNet-18, 200 epochs, ×.1 at 100 and 150. bfloat16 and the choice of
the best checkpoint on held-out training images are ours.
Published (the released code's logs), PGD-20: best clean 81.18, robust 55.39; last 81.65, 54.30.
Measured, :small, seed 0, the first 1,000 test images, two cores: clean 40.5, PGD-20 26.9, margin
PGD-100 × 5 24.5, scaled PGD-20 23.1, AutoAttack 22.8, worst case 22.8 (results/small_cifar10).
The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.decay_epochs = 200, (100, 150)
  c.awp_gamma = .01
  return variants.variant(c, arg)

"""PGD-AT with EntropySGD on CIFAR-10, L∞ 8/255 or L2 128/255.

  python -m at_jax.main --config=configs/entropy_sgd_cifar10.py
  python -m at_jax.main --config=configs/entropy_sgd_cifar10.py:l2
  python -m at_jax.main --config=configs/entropy_sgd_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Kanai et al., Relationship Between Nonsmoothness in Adversarial Training, Constraints of
Attacks, and Flatness in the Input Space, 2024; its hyperparameters could not be read. Those here are
from EntropySGD's released code for CIFAR-10 (Chaudhari et al., Entropy-SGD: Biasing Gradient Descent
Into Wide Valleys, 2017).
From the reference: L = 20, γ = .03, scoping 1e-3, noise 1e-4, outer learning rate 1, × .2 at 4/10 and
7/10 of training.
Ours: its 10 epochs of 20 inner epochs become 200 epochs of minibatches, each attacked at the inner
weights; weight decay 5e-4; no outer momentum; PreActResNet-18, bfloat16, and the best checkpoint is
chosen on held-out training images.
In any other configuration EntropySGD is one field: --config.optimizer.name=entropy_sgd.

Published: none that could be read. For comparison, plain SGD (logs of AWP's released code, PGD-20,
best): L∞ clean 81.70, robust 52.79; L2 88.80, 69.15.
Measured (the first 1,000 test images, two CPU cores, results/small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 44.0 ± 0.5, PGD-20 28.5 ± 0.9, margin PGD-100 × 5
    24.2 ± 0.4, logit-scaled PGD-20 23.7 ± 0.4, AutoAttack 23.4 ± 0.4, worst case 23.4 ± 0.4.
  :l2-small, seed 0: clean 56.6, PGD-20 40.5, margin PGD-100 × 5 37.9, logit-scaled PGD-20 37.4,
    AutoAttack 37.3, worst case 37.3.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.epochs, c.optimizer.name = 200, 'entropy_sgd'
  c.optimizer.decay_epochs = (80, 140)
  if 'l2' in arg.split('-'):
    c.attack.norm, c.attack.epsilon_255, c.attack.step_size_255 = 'l2', 128.0, 15.0
  if 'mnist' in arg.split('-'):
    c.optimizer.entropy.gamma = 1e-4  # as in the released code for MNIST
  return variants.variant(c, arg, 'l2')

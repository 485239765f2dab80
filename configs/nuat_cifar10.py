"""NuAT, nuclear-norm adversarial training, on CIFAR-10, L∞ 8/255: one step, and a regulariser of the batch.

  python -m at_jax.main --config=configs/nuat_cifar10.py
  python -m at_jax.main --config=configs/nuat_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Sriramanan et al., Towards Efficient and Effective Adversarial Training, 2021, and its released
code for ResNet-18.
From the reference: 100 epochs, batch 64, β rises from 0 to 4.5 at epoch 90, noise of ε/2 and a step of ε,
weight decay 5e-4.
Ours: a cyclic learning rate with its peak of .1 in the middle (the code's has it at epoch 40, and falls in
steps after epoch 80); the nuclear norm is in the attack of every step; PreActResNet-18, bfloat16.

Published: AutoAttack 50.10 (reported: FastAT Benchmark, arXiv 2604.22853, ResNet-18, 100 epochs).
Measured (the first 1,000 test images, two CPU cores, results/passes_small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 50.4 ± 0.6, PGD-20 30.9 ± 1.2, fast AutoAttack
    25.6 ± 1.1, worst case 25.6 ± 1.1.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.beta, c.beta_ramp_epochs = 'nuat', 4.5, (0, 90)
  c.attack.num_steps = 1
  c.epochs, c.batch_size, c.optimizer.schedule = 100, 64, 'cyclic'
  return variants.variant(c, arg)

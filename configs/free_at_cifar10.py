"""Free-AT, free adversarial training, on CIFAR-10, L∞ 8/255: one backward pass for weights and examples.

  python -m at_jax.main --config=configs/free_at_cifar10.py
  python -m at_jax.main --config=configs/free_at_cifar10.py:small   minutes on two cores
  Other data and sizes: :cifar100 and :mnist; combinations such as :cifar100-small.

Reference: Shafahi et al., Adversarial Training for Free!, 2019, and its released code.
From the reference: m = 8 replays of each batch of 128, 80,000 steps (26 epochs of 8 replays), learning rate
.1, × .1 after half and after three quarters of them, weight decay 2e-4.
Ours: PreActResNet-18, bfloat16, and the best checkpoint is chosen on held-out training images; :small has
four epochs of four replays, as many passes as FGSM-RS has there.

Published: WRN-32-10, m = 8: clean 85.96, PGD-20 × 10 46.33.
Measured (the first 1,000 test images, two CPU cores, results/passes_small_cifar10; percent):
  :small, mean ± standard deviation of 3 seeds: clean 52.4 ± 1.3, PGD-20 27.9 ± 0.3, fast AutoAttack
    23.3 ± 0.3, worst case 23.3 ± 0.3.
  The full configuration: not measured yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.model.dtype = 'bfloat16'
  c.loss, c.attack.num_steps = 'free_at', 1
  c.epochs, c.optimizer.weight_decay, c.optimizer.decay_epochs = 26, 2e-4, (13, 19)
  c = variants.variant(c, arg)
  asked = arg.split('-')
  if 'small' in asked and 'smoke' not in asked:
    c.epochs, c.optimizer.decay_epochs = 4, (2, 3)
  return c

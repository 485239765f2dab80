"""DUCAT with PGD-AT on CIFAR-10, L∞ 8/255.

  python -m at_jax.main --config=configs/ducat_cifar10.py              PreActResNet-18
  python -m at_jax.main --config=configs/ducat_cifar10.py:bottleneck   the authors' network
  python -m at_jax.main --config=configs/ducat_cifar10.py:small        minutes on two cores
  :cifar100 and :mnist are the same method on other data, :cifar100-small and so on cut down.

Source: Wang et al., DUCAT, arXiv 2410.12671, and its released code: 130 epochs, the first 104 plain
PGD-AT over 2C outputs, one more before the learning rate falls to .001; weights .25, 1, 1. The
authors choose their best checkpoint by PGD-10 on the test set; here it is chosen on 1,000 images
held out of the training set, by the deployed model. PreActResNet-18 and bfloat16 are ours.
Published (reported): clean 88.81, PGD-10 65.10, AutoAttack 58.61, all under the authors' protocol;
29.52 under an attack that knows the dummy classes (arXiv 2603.29182).
Measured, :small, mean ± std of 3 seeds, the first 1,000 test images, two cores: clean 38.5 ± 1.6,
PGD-20 20.5 ± 1.7, margin PGD-100 × 5 16.4 ± 0.9, scaled PGD-20 15.5 ± 1.2, dummy-aware 16.2 ±
1.3, AutoAttack 15.1 ± 1.2, authors' PGD-20 25.0 ± 1.5, worst case 15.1 ± 1.2
(results/small_cifar10). The whole form: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dummy.enabled = True
  c.model.dtype = 'bfloat16'
  if 'bottleneck' in arg.split('-'):
    c.model.name = 'DucatResNet18'
  return variants.variant(c, arg, 'bottleneck')

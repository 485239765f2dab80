"""DUCAT on scikit-learn's digits with a small dense network: no download, about a minute on two cores.

  python -m at_jax.main --config=configs/quickstart.py

Standard training and PGD-AT on the same data and network:

  python -m at_jax.main --config=configs/quickstart.py:standard
  python -m at_jax.main --config=configs/quickstart.py:pgd_at

Measured with seed 0, n = 397, PGD-20 at ε = .15, on two CPU cores without an accelerator (accuracies in
%, CPU seconds for everything from start to end):

              clean   deployed: pgd20, worst of both   released protocol: pgd20   CPU s
  standard     98.2                 1.8          0.8                          -      36
  PGD-AT       95.2                54.7         50.4                          -      43
  DUCAT        97.2                20.2         17.4                       70.5      50

The released protocol ranks DUCAT above PGD-AT; the deployed model is far less robust. Report the deployed
worst case.

Reference: as configs/ducat_cifar10.py.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dataset.name, c.dataset.num_classes = 'digits', 10
  c.dataset.validation_size = 100
  c.dataset.pad, c.dataset.flip = 1, False
  c.model.name, c.model.features, c.model.hidden = 'SmallCNN', (), (256, 256)
  c.epochs, c.batch_size = 60, 100
  c.attack.epsilon_255, c.attack.step_size_255 = .15 * 255, .0375 * 255
  c.optimizer.decay_epochs = (40, 50)
  c.log_every_steps = 65
  c.validate.every_epochs = 60  # once, so that the last checkpoint is evaluated
  c.evaluate.batch_size, c.evaluate.attacks = 397, ('pgd20', 'margin20x2')
  c.evaluate.audit = 0
  if arg in ('standard', 'pgd_at'):
    c.loss = arg
  else:
    c.dummy.enabled, c.dummy.start_epoch = True, 20
  if arg == 'smoke':
    c.model.batch_norm = True  # its network has two convolutions
    c = variants.smoke(c)
  variants.only(arg, 'pgd_at', 'smoke', 'standard')
  return c

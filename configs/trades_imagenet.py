"""TRADES on ImageNet (1,000 classes, 224×224), ResNet-50, L∞ 4/255.

  python -m at_jax.main --config=configs/trades_imagenet.py --config.dataset.data_dir=DIR
  python -m at_jax.main --config=configs/trades_imagenet.py:smoke   two steps on digits

DIR holds ImageNet as TFDS prepares it in array_record: docs/training.md, "Large data".

Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019, for the
method; Liu et al., A Comprehensive Study on Robustness of Image Classification Models, arXiv 2302.14301, and
its released code (ARES 2.0, resnet50.yaml), for training on ImageNet.
From the references: β = 6; ε = 4/255, three steps of 8/3/255; SGD with weight decay 1e-4, × .1 every 30
epochs; random resized crops of 8 to 100 %, and flips.
Ours: batch 512 at learning rate .2, 90 epochs, bfloat16; 10,000 training images are held out to choose the
best checkpoint. The released code also has warm-up, Mixup, CutMix, label smoothing and an average of weights.
The test set is the official validation split: 5,000 of its images are evaluated, as RobustBench does (not
the same ones).

Published: PGD-AT with the released code (reported; 1,000 images): clean 67.0, PGD-100 38.7, AutoAttack 34.1.
Measured: not yet.
"""

from at_jax.config import fields, variants


def get_config(arg: str = ''):
  c = fields.default()
  c.dataset.update(name='imagenet2012', num_classes=1000, source='stream', augment='resized_crop',
                   validation_size=10000)
  c.model.name, c.model.dtype = 'ResNet50', 'bfloat16'
  c.model.normalize = (.485, .456, .406), (.229, .224, .225)
  c.loss, c.beta = 'trades', 6.0
  c.epochs, c.batch_size = 90, 512
  c.attack.epsilon_255, c.attack.num_steps, c.attack.step_size_255 = 4.0, 3, 8 / 3
  c.optimizer.learning_rate, c.optimizer.weight_decay = .2, 1e-4
  c.optimizer.decay_epochs = 30, 60
  c.evaluate.num_examples, c.evaluate.step_size_255 = 5000, 1.0
  if arg == 'smoke':
    c = variants.smoke(c)
  variants.only(arg, 'smoke')
  return c

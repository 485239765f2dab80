"""Linen models that map images in [0, 1] to logits; a config names one by its name here."""

from at_jax.models.resnet import DucatResNet18, PreActResNet18, WideResNet, WideResNet28_10, WideResNet34_10
from at_jax.models.small_cnn import SmallCNN

__all__ = [
    'DucatResNet18', 'PreActResNet18', 'SmallCNN', 'WideResNet', 'WideResNet28_10',
    'WideResNet34_10']

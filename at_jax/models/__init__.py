"""Linen networks that map images in [0, 1] to logits, and how they are deployed.

`NETWORKS` lists the names that `config.model.name` accepts.
"""

from at_jax.models.deployed import Network, deploy
from at_jax.models.importers import from_torch
from at_jax.models.resnet import (
  DucatResNet18,
  PreActResNet18,
  ResNet18,
  ResNet50,
  WideResNet,
  WideResNet28_10,
  WideResNet34_10,
)
from at_jax.models.small_cnn import SmallCNN

NETWORKS = ('DucatResNet18', 'PreActResNet18', 'ResNet18', 'ResNet50', 'SmallCNN', 'WideResNet',
            'WideResNet28_10', 'WideResNet34_10')

__all__ = [
    'NETWORKS', 'DucatResNet18', 'Network', 'PreActResNet18', 'ResNet18', 'ResNet50', 'SmallCNN',
    'WideResNet', 'WideResNet28_10', 'WideResNet34_10', 'deploy', 'from_torch']

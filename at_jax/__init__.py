"""Adversarial training in JAX: attacks, training methods, robust evaluation and its analysis.

The subpackages are loaded when they are first used. `at_jax.attacks` needs only jax and numpy; the
others need the packages of `pip install 'at_jax[train,data]'`.

>>> import at_jax
>>> at_jax.attacks.pgd.__name__
'pgd'
"""

import importlib
from typing import Any

__version__ = '0.1.0'
_SUBPACKAGES = ('analysis', 'attacks', 'config', 'datasets', 'evaluation', 'methods', 'models', 'training')


def __getattr__(name: str) -> Any:
  if name in _SUBPACKAGES:
    return importlib.import_module(f'at_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_SUBPACKAGES])

"""Training: from a configuration and a work directory to a trained and evaluated model.

The names below are loaded when they are first used, because orbax takes seconds to import.
"""

import importlib
from typing import Any

_PUBLIC = {'Preempted': 'interrupts', 'Run': 'setup', 'build': 'setup', 'evaluate_only': 'loop',
           'load': 'restore', 'train_and_evaluate': 'loop'}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    return getattr(importlib.import_module(f'at_jax.training.{_PUBLIC[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

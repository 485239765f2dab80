"""Accuracy by class, names of norms, and digests of arrays."""

import hashlib
from typing import Any

import jax
import numpy as np


def accuracy_by_class(verdicts: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Computes the share of each class's examples with a True verdict.

  Args:
    verdicts: bool[N].
    labels: i32[N].
    num_classes: C.

  Returns:
    f64[C] on the host, NaN for a class without examples.

  Example:
    >>> accuracy_by_class(np.array([True, False, True]), np.array([0, 0, 2]), 3)
    array([0.5, nan, 1. ])
  """
  total = np.bincount(labels, minlength=num_classes)
  correct = np.bincount(labels, weights=verdicts, minlength=num_classes)
  return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


def norm_name(norm: str) -> str:
  """Returns the name of a norm in text.

  Args:
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    The name.

  Example:
    >>> norm_name('linf'), norm_name('l2')
    ('L∞', 'L2')
  """
  return norm.upper().replace('INF', '∞')


def digests(tree: Any) -> dict[str, str]:
  """Computes a digest of every leaf from its dtype, shape and bytes.

  Args:
    tree: pytree of arrays.

  Returns:
    `{path: SHA-256 in hexadecimal}`.

  Example:
    >>> list(digests({'w': np.zeros(2)}))
    ["['w']"]
  """
  def digest(leaf: Any) -> str:
    leaf = np.ascontiguousarray(leaf)
    return hashlib.sha256(f'{leaf.dtype}{leaf.shape}'.encode() + leaf.tobytes()).hexdigest()

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}

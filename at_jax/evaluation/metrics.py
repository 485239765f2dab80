"""Accuracy by class, and digests of arrays."""

import hashlib
from typing import Any

import jax
import numpy as np


def accuracy_by_class(verdicts: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """The share of each class's examples that stand.

  Args:
    verdicts: bool[N].
    labels: i32[N].
    num_classes: C.

  Returns:
    f64[C] on the host, NaN for a class without an example.

  Example:
    >>> accuracies(np.array([True, False, True]), np.array([0, 0, 2]), 3)
    array([0.5, nan, 1. ])

  Source: the usual definition.
  """
  seen = np.bincount(labels, minlength=num_classes)
  stood = np.bincount(labels, weights=verdicts, minlength=num_classes)
  return np.where(seen > 0, stood / np.maximum(seen, 1), np.nan)


def digests(tree: Any) -> dict[str, str]:
  """A digest of every leaf: of its dtype, its shape and its bytes.

  Args:
    tree: a pytree of arrays.

  Returns:
    `{path: SHA-256 in hex}`.

  Example:
    >>> list(digests({'w': np.zeros(2)}))
    ["['w']"]

  Source: ours.
  """
  def digest(leaf: Any) -> str:
    leaf = np.ascontiguousarray(leaf)
    return hashlib.sha256(f'{leaf.dtype}{leaf.shape}'.encode() + leaf.tobytes()).hexdigest()

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}

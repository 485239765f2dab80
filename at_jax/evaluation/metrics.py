"""Accuracy by class and over radii, names of norms, and digests of arrays."""

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


def expected_robustness(epsilons: np.ndarray, robust: np.ndarray) -> float:
  """Computes the expected accuracy at a radius drawn uniformly from 0 to ε_K, from attacks at several radii.

  E[A(ε)] = 1/ε_K ∫₀^ε_K A(ε) dε, by the trapezoidal rule. As balls are nested, an example that is fooled at
  one radius counts as fooled at each larger one.

  Args:
    epsilons: f32[K], K ≥ 2 radii in increasing order; the first is 0.
    robust: bool[K, N], verdicts at each radius, those at 0 clean; or f32[K], accuracies in 0..1.

  Returns:
    The expected accuracy, in 0..1.

  Raises:
    ValueError: if the radii do not begin at 0 and increase, or an array has another shape.

  Example:
    >>> expected_robustness([0, .02, .04], [.75, .5, .25])
    0.5

  Reference: Ngnawé et al., Robust Fine-Tuning from Non-Robust Pretrained Models: Mitigating Suboptimal
  Transfer with Epsilon-Scheduling, arXiv 2509.23325, 2025. Nested verdicts are ours.
  """
  epsilons, robust = np.asarray(epsilons, np.float64), np.asarray(robust, np.float64)
  if epsilons.ndim != 1 or len(epsilons) < 2 or epsilons[0] != 0 or not (np.diff(epsilons) > 0).all():
    raise ValueError(f'epsilons = {epsilons.tolist()}: use at least two radii, 0 and then larger ones')
  if robust.ndim not in (1, 2) or len(robust) != len(epsilons) or not robust.size:
    raise ValueError(f'robust has shape {robust.shape}: use one row of verdicts, or one accuracy, for each '
                     f'of {len(epsilons)} radii')
  curve = np.minimum.accumulate(robust).reshape(len(epsilons), -1).mean(axis=1)
  return float(np.sum(np.diff(epsilons) * (curve[1:] + curve[:-1])) / (2 * epsilons[-1]))


def expected_robustness_of_radii(radius: np.ndarray, epsilon: float) -> float:
  """Computes the expected accuracy at a radius drawn uniformly from 0 to ε, from each example's own radius.

  As A(t) = mean(radius > t), the integral of `expected_robustness` is exactly mean(min(radius, ε)) / ε.

  Args:
    radius: f32[N], distance of each example's nearest misclassified point: 0 if it is misclassified clean,
      +inf if there is none (`attacks.fmn`).
    epsilon: ε > 0, the largest radius.

  Returns:
    The expected accuracy, in 0..1.

  Raises:
    ValueError: if ε is not above 0 and finite, or the radii are empty, negative or NaN.

  Example:
    >>> expected_robustness_of_radii([0., .02, np.inf], .04)
    0.5

  Reference: see `expected_robustness`.
  """
  radius = np.ravel(np.asarray(radius, np.float64))
  if np.ndim(epsilon) or not 0 < epsilon < np.inf:
    raise ValueError(f'epsilon = {epsilon}: use a finite number above 0')
  if not radius.size or not (radius >= 0).all():
    raise ValueError(f'radius = {radius[~(radius >= 0)][:1].tolist()}: use one number of at least 0 for each '
                     'example')
  return float(np.minimum(radius, epsilon).mean() / epsilon)


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

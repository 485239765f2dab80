"""How attack steps are repeated: the one place that decides, by backend, between a loop and none.

XLA's CPU backend runs the gradient of a convolution 20 to 100 times slower inside a loop than outside
one (jax issue 12868), so there the steps are written out, and a long attack becomes several compiled
calls of at most `UNROLLED` steps, which keeps compile times bounded. On other backends it is one scan.
Both give the same result; a test says so.
"""

from collections.abc import Callable
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

UNROLLED = 10
_Carry = TypeVar('_Carry')


def writes_out() -> bool:
  """Whether steps are written out rather than looped over on the default backend."""
  return jax.default_backend() == 'cpu'


def calls(
    num_steps: int, differentiates: bool = True, at_once: int = UNROLLED
) -> list[int]:
  """Splits an attack into compiled calls: the number of steps in each.

  Args:
    num_steps: the steps of the whole attack.
    differentiates: whether a step takes a gradient; if not, a loop is fast on every backend.
    at_once: how many steps to write out in one call where they are.

  Returns:
    Numbers that add up to `num_steps`; at most two different ones, so at most two programs.

  Example:
    >>> sum(calls(25))
    25

  Source: ours.
  """
  if not (differentiates and writes_out()):
    return [num_steps]
  whole, rest = divmod(num_steps, at_once)
  return [at_once] * whole + [rest] * (rest > 0)


def scan(
    body: Callable, carry: Any, xs: Any, *, length: int, differentiates: bool = True
) -> tuple[Any, Any]:
  """`jax.lax.scan` in the form that is fast on the default backend.

  Args:
    body: as for `jax.lax.scan`.
    carry: as for `jax.lax.scan`.
    xs: as for `jax.lax.scan`.
    length: the number of iterations, static.
    differentiates: whether an iteration takes a gradient; if not, a loop is fast on every backend.

  Returns:
    The last carry, and the stacked outputs.

  Example:
    >>> total, sums = scan(lambda c, x: (c + x, c), 0, jnp.arange(3), length=3)
    >>> print(total, sums)
    3 [0 0 1]

  Source: ours.
  """
  if not (differentiates and writes_out()):
    return jax.lax.scan(body, carry, xs, length=length)
  if length == 1:  # which stays a loop even where it is told to unroll
    carry, y = body(carry, jax.tree.map(lambda leaf: leaf[0], xs))
    return carry, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], y)
  return jax.lax.scan(body, carry, xs, length=length, unroll=True)


def repeat(
    step: Callable[[_Carry], _Carry], carry: _Carry, num_steps: int, differentiates: bool = True
) -> _Carry:
  """Applies `step` to `carry` `num_steps` times, in the form that is fast on the default backend.

  Args:
    step: a pure function of the carry.
    carry: any pytree.
    num_steps: how often, static.
    differentiates: whether a step takes a gradient; if not, a loop is fast on every backend.

  Returns:
    The last carry.

  Example:
    >>> print(repeat(lambda n: n + 2, 0, 3))
    6

  Source: ours.
  """
  return scan(lambda c, _: (step(c), None), carry, None, length=num_steps,
              differentiates=differentiates)[0]


@functools.cache
def compiler_options(differentiates: bool = True) -> dict[str, str] | None:
  """Options for compiling attacks; jit takes them at the top level only.

  On the CPU, one of XLA's fusions makes the gradient of a convolution half as slow again, or worse,
  but a forward convolution twice as fast. So it is off for programs with gradients and on for the
  others, whatever XLA_FLAGS says.

  Args:
    differentiates: whether the program takes gradients.

  Returns:
    What `jax.jit` takes as `compiler_options`; None on other backends, and where this version of XLA
    does not know the option.

  Example:
    >>> compiler_options() is None or 'xla_cpu_experimental_ynn_fusion_type' in compiler_options()
    True

  Source: ours, measured with jaxlib 0.10.2.
  """
  fusions = '' if differentiates else 'LIBRARY_FUSION_TYPE_DOT'
  options = {'xla_cpu_experimental_ynn_fusion_type': fusions}
  if not writes_out():
    return None
  try:
    jax.jit(lambda: 0, compiler_options=options)()
  except (jax.errors.JaxRuntimeError, TypeError):
    return None
  return options

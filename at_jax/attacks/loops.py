"""How attack steps are repeated: the one place that decides, by backend, between a loop and none.

XLA's CPU backend runs the gradient of a convolution 20 to 100 times slower inside a loop than outside
one (jax issue 12868), so there the steps are written out, and a long attack becomes several compiled
calls of at most `UNROLLED` steps, which keeps compile times bounded. On other backends it is one scan.
Both give the same result; a test says so.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

UNROLLED = 10
_Carry = TypeVar('_Carry')


def writes_out() -> bool:
  """Whether steps are written out rather than looped over on the default backend."""
  return jax.default_backend() == 'cpu'


def calls(num_steps: int) -> list[int]:
  """Splits an attack into compiled calls: the number of steps in each.

  Args:
    num_steps: the steps of the whole attack.

  Returns:
    Numbers that add up to `num_steps`; at most two different ones, so at most two programs.

  Example:
    >>> sum(calls(25))
    25

  Source: ours.
  """
  if not writes_out():
    return [num_steps]
  whole, rest = divmod(num_steps, UNROLLED)
  return [UNROLLED] * whole + [rest] * (rest > 0)


def scan(body: Callable, carry: Any, xs: Any, *, length: int) -> tuple[Any, Any]:
  """`jax.lax.scan` in the form that is fast on the default backend.

  Args:
    body: as for `jax.lax.scan`.
    carry: as for `jax.lax.scan`.
    xs: as for `jax.lax.scan`.
    length: the number of iterations, static.

  Returns:
    The last carry, and the stacked outputs.

  Example:
    >>> total, sums = scan(lambda c, x: (c + x, c), 0, jnp.arange(3), length=3)
    >>> print(total, sums)
    3 [0 0 1]

  Source: ours.
  """
  if not writes_out():
    return jax.lax.scan(body, carry, xs, length=length)
  if length == 1:  # which `unroll` would leave a loop
    carry, y = body(carry, jax.tree.map(lambda leaf: leaf[0], xs))
    return carry, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], y)
  return jax.lax.scan(body, carry, xs, length=length, unroll=True)


def repeat(step: Callable[[_Carry], _Carry], carry: _Carry, num_steps: int) -> _Carry:
  """Applies `step` to `carry` `num_steps` times, in the form that is fast on the default backend.

  Args:
    step: a pure function of the carry.
    carry: any pytree.
    num_steps: how often, static.

  Returns:
    The last carry.

  Example:
    >>> print(repeat(lambda n: n + 2, 0, 3))
    6

  Source: ours.
  """
  return scan(lambda c, _: (step(c), None), carry, None, length=num_steps)[0]

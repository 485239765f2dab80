"""Repeats attack steps, as a loop or unrolled, depending on the backend.

Inside a loop, XLA's CPU backend computes the gradient of a convolution 20 to 100 times slower (jax issue
12868), and a convolution of channels-first images 8 to 10 times slower. So on the CPU the steps are
unrolled, and a long attack is split into compiled calls of at most `UNROLLED` steps, which bounds the
compile time. On other backends it is one scan. Both give the same result.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

UNROLLED = 10
_T = TypeVar('_T')
_target: str | None = None


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
  """Traces for another platform than the default backend, to compile for devices that are not there."""
  global _target
  before, _target = _target, platform
  jax.clear_caches()  # they hold what was traced for another platform
  try:
    yield
  finally:
    _target = before
    jax.clear_caches()


def unrolls() -> bool:
  """Whether steps are unrolled on the default backend, or on the platform of `tracing_for`."""
  return (_target or jax.default_backend()) == 'cpu'


def calls(num_steps: int, at_once: int = UNROLLED) -> list[int]:
  """Splits an attack of `num_steps` into compiled calls: the number of steps in each.

  At most two numbers differ, so at most two programs are compiled. `at_once` is the number of unrolled
  steps per call.
  """
  if not unrolls():
    return [num_steps]
  whole, rest = divmod(num_steps, at_once)
  return [at_once] * whole + [rest] * (rest > 0)


def scan(body: Callable, carry: Any, xs: Any, *, length: int) -> tuple[Any, Any]:
  """`jax.lax.scan`, unrolled where a loop is slow."""
  if not unrolls():
    return jax.lax.scan(body, carry, xs, length=length)
  if length == 1:  # which stays a loop even with unroll=True
    carry, y = body(carry, jax.tree.map(lambda leaf: leaf[0], xs))
    return carry, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], y)
  return jax.lax.scan(body, carry, xs, length=length, unroll=True)


def repeat(step: Callable[[_T], _T], carry: _T, num_steps: int) -> _T:
  """Applies `step` to `carry` `num_steps` times, unrolled where a loop is slow."""
  return scan(lambda c, _: (step(c), None), carry, None, length=num_steps)[0]


def compiler_options(differentiates: bool | None) -> tuple[tuple[str, str], ...]:
  """`compiler_options` of jit for attacks, as pairs; jit accepts them at the top level only.

  On the CPU XLA fuses operations into YNNPACK (measured with jaxlib 0.10.2). Fused convolutions make a
  gradient at least 1.5 times slower, and fused sums can be wrong in batches of more than 32,768
  (`findings/jax_cpu_sum_of_products.sh`). Fused matrix products make a forward convolution up to twice as
  fast, so they stay on for programs without gradients. This overrides XLA_FLAGS. None is for programs without
  a model. LLVM's level 2 compiles a step in 60 to 90 % of the time of level 3, and a start in half; neither
  runs slower. Empty on other backends, and without the options that this version of XLA does not know.
  """
  if not unrolls():
    return ()
  fusion = 'LIBRARY_FUSION_TYPE_DOT' if differentiates is False else ''
  wanted = [('xla_cpu_experimental_ynn_fusion_type', fusion)]
  if not jax.config.read('jax_disable_most_optimizations'):  # which is level 0
    wanted.append(('xla_backend_optimization_level', '2'))
  return tuple(option for option in wanted if _is_known(*option))


@functools.cache
def _is_known(name: str, value: str) -> bool:
  try:
    jax.jit(lambda: 0, compiler_options={name: value})()
  except (jax.errors.JaxRuntimeError, TypeError):
    return False
  return True

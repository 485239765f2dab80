"""Means and broadcasts over channels; BatchNorm, which is made of them, equals that of linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _loops
from at_jax.models import channels, layers

SHAPES = [(64, 32, 32, 8), (48, 7, 5, 3), (1, 1, 1, 1)]


def compiled(lowered):
  """Compiles a program as commands do (`xla_flags`): without YNNPACK, if this jaxlib has it."""
  option = ('xla_cpu_experimental_ynn_fusion_type', '')
  return lowered.compile(dict([option] if _loops._is_known(*option) else []))


def features(shape, dtype=np.float64):
  # Means of up to 3 standard deviations, as after a convolution.
  random = np.random.default_rng(5)
  return (random.normal(size=shape) + 3 * random.uniform(size=shape[-1])).astype(dtype)


def outputs_and_gradients(module, variables, x):
  def weighed(params, x):
    y, updated = module.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
    return (y * np.random.default_rng(3).normal(size=y.shape)).sum(), (y, updated)

  gradients, outputs = jax.jit(jax.grad(weighed, (0, 1), has_aux=True))(variables['params'], x)
  return gradients, outputs


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('train', [True, False])
def test_batchnorm_equals_that_of_linen(shape, train):
  with jax.enable_x64(True):
    ours = layers.BatchNorm(train=train, axis_name=None, dtype=jnp.float64)
    theirs = nn.BatchNorm(
        use_running_average=not train, momentum=.9, epsilon=1e-5, dtype=jnp.float64, param_dtype=jnp.float64,
        force_float32_reductions=False)
    x = jnp.asarray(features(shape))
    variables = jax.tree.map(
        lambda v: jnp.asarray(np.random.default_rng(2).uniform(.5, 2, v.shape), v.dtype),
        theirs.init(jax.random.key(0), x))
    assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(variables)
    for a, b in zip(*(jax.tree.leaves(outputs_and_gradients(norm, variables, x)) for norm in (ours, theirs)),
                    strict=True):
      assert a.dtype == b.dtype == jnp.float64
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.oldest
@pytest.mark.parametrize('shape', SHAPES)
def test_means_in_float32_are_those_in_float64(shape):
  # Sums of 32 and then 2,048 terms, which err by a few roundings of 6e-8; one sum of 65,536 errs by 2.6e-6.
  x = features(shape, np.float32)
  mean = compiled(jax.jit(channels.mean).lower(x))
  np.testing.assert_allclose(mean(x), x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)


def program(platform):
  """A training step of BatchNorm as it is given to the compiler of a platform."""
  norm = layers.BatchNorm(train=True, axis_name=None, dtype=jnp.float32)
  x = jax.ShapeDtypeStruct(SHAPES[0], jnp.float32)

  def loss(params, stats, x):
    return norm.apply({'params': params, 'batch_stats': stats}, x, mutable=['batch_stats'])[0].sum()

  shapes = jax.eval_shape(norm.init, jax.random.key(0), x)
  step = jax.jit(jax.grad(loss, (0, 2)))
  return step.trace(shapes['params'], shapes['batch_stats'], x).lower(lowering_platforms=(platform,))


@pytest.mark.oldest
def test_only_programs_for_the_cpu_keep_the_two_sums_apart():
  assert 'optimization_barrier' in program('cpu').as_text()
  for platform in ('tpu', 'cuda'):
    assert 'optimization_barrier' not in program(platform).as_text()


def test_the_compiler_for_the_cpu_does_not_merge_the_two_sums():
  # A sum over batch, height and width at once becomes a window over these three axes.
  def merged(lowered):
    lines = compiled(lowered).as_text().splitlines()
    return [line for line in lines if 'reduce-window(' in line and 'x32x32x1 ' in line]

  assert not merged(program('cpu'))
  assert merged(jax.jit(lambda x: x.sum(1).sum((0, 1))).lower(jnp.zeros(SHAPES[0])))  # without a barrier

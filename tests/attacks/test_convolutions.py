"""The form of few-channel convolutions in gradients on the CPU, against XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _convolutions, _loops


def convolution(x, kernel, padding, layout='NHWC', **options):
  numbers = {'NHWC': ('NHWC', 'HWIO', 'NHWC'), 'NCHW': ('NCHW', 'OIHW', 'NCHW'), 'NWC': ('NWC', 'WIO', 'NWC')}
  strides = options.pop('window_strides', (1,) * (x.ndim - 2))
  return jax.lax.conv_general_dilated(
      x, kernel, strides, padding, dimension_numbers=numbers[layout], **options)


def primitives(function, *args):
  return {eqn.primitive.name for eqn in _convolutions._equations(jax.make_jaxpr(function)(*args).jaxpr)}


@pytest.mark.parametrize('layout, x_shape, kernel_shape, padding', [
    ('NHWC', (2, 6, 5, 3), (3, 2, 3, 8), ((1, 0), (2, -1))),
    ('NCHW', (2, 1, 5, 6), (8, 1, 2, 3), ((0, 0), (1, 2))),
    ('NWC', (2, 7, 2), (4, 2, 9), ((1, 1),)),
])
def test_outputs_and_gradients_equal_those_of_xla(layout, x_shape, kernel_shape, padding):
  draw = np.random.default_rng(0)
  x, kernel = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in (x_shape, kernel_shape))
  native = lambda x, kernel: jax.jit(lambda x: convolution(x, kernel, padding, layout))(x)
  fast = lambda x, kernel: _convolutions.fast(lambda x: native(x, kernel))(x)
  assert 'conv_general_dilated' not in primitives(fast, x, kernel)
  (expected, pull), (answer, pull_fast) = jax.vjp(native, x, kernel), jax.vjp(fast, x, kernel)
  cotangent = jnp.asarray(draw.normal(size=expected.shape), jnp.float32)
  for a, b in zip((answer, *pull_fast(cotangent)), (expected, *pull(cotangent)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('x_shape, kernel_shape, options', [
    ((1, 4, 4, 5), (2, 2, 5, 8), {}),
    ((1, 4, 4, 1), (2, 2, 1, 4), {}),
    ((1, 8, 8, 1), (7, 7, 1, 8), {}),
    ((1, 4, 4, 1), (2, 2, 1, 8), {'window_strides': (2, 2)}),
    ((1, 4, 4, 1), (2, 2, 1, 8), {'rhs_dilation': (2, 2)}),
    ((1, 4, 4, 2), (2, 2, 1, 8), {'feature_group_count': 2}),
])
def test_other_convolutions_keep_the_form_of_xla(x_shape, kernel_shape, options):
  x, kernel = jnp.ones(x_shape), jnp.ones(kernel_shape)
  fast = _convolutions.fast(lambda x: convolution(x, kernel, 'VALID', **options))
  assert 'conv_general_dilated' in primitives(fast, x)


def test_other_backends_keep_the_model(monkeypatch):
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)
  model = lambda x: x
  assert _convolutions.fast(model) is model


def test_apgd_finds_the_same_points_up_to_rounding(monkeypatch):
  draw = np.random.default_rng(0)
  kernel, head = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((3, 3, 1, 8), (32, 3)))
  model = lambda x: jnp.tanh(convolution(x, kernel, 'VALID')).reshape(len(x), -1) @ head
  x = jnp.asarray(draw.uniform(size=(3, 4, 4, 1)), jnp.float32)
  attack = lambda: attacks.apgd(model, x, jnp.argmax(model(x), axis=1), jax.random.key(0), epsilon=.5,
                                norm='l2', num_steps=3)
  result = attack()
  monkeypatch.setattr(_convolutions, 'fast', lambda model: model)
  jax.clear_caches()
  for a, b in zip(result, attack(), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)

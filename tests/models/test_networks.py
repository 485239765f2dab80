"""The networks: sizes, shapes, precision, initialisation, and BatchNorm over devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors, models
from at_jax.models import layers

CIFAR, TINY, MNIST, DIGITS = (32, 32, 3), (64, 64, 3), (28, 28, 1), (8, 8, 1)
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
# Small versions, which compile in seconds.
SMALL = {
    'SmallCNN': dict(features=(4, 4), hidden=(8,), padding='SAME', batch_norm=True),
    'PreActResNet18': dict(width=4, stage_sizes=(1, 1)),
    'DucatResNet18': dict(width=4, stage_sizes=(1, 1)),
    'ResNet18': dict(width=4, stage_sizes=(1, 1)),
    'ResNet50': dict(width=4, stage_sizes=(1, 1)),
    'WideResNet': dict(depth=10, widen_factor=1),
}


def small(name, **other):
  return getattr(models, name)(num_outputs=5, **{**SMALL[name], **other})


def shapes(model, image):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))


def images(count, image=(8, 8, 3), dtype=jnp.float32):
  # From NumPy, because jax.random compiles for every shape.
  return jnp.asarray(np.random.default_rng(7).uniform(size=(count, *image)), dtype)


def variables_of(model):
  """Random variables; statistics and scales differ from their initial values."""
  random = np.random.default_rng(3)
  return jax.tree.map(
      lambda x: jnp.asarray(random.uniform(-0.3, 0.3, x.shape) + (len(x.shape) == 1), x.dtype),
      shapes(model, (8, 8, 3)))


def train(model, variables, x):
  return jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats']))(variables, x)


@pytest.mark.parametrize('name, other, image, count', [
    # Convolutions 320 + 9,248 + 18,496 + 36,928, then dense 205,000 + 40,200 + 2,010.
    ('SmallCNN', {}, MNIST, 312_202),
    # 1,728 stem; stages 147,968, 525,184, 2,098,944 and 8,392,192; head 5,130: 11,171,146.
    ('PreActResNet18', {}, CIFAR, 11_172_170),  # Rice et al., AWP: 2·512 more, of the last BatchNorm
    ('PreActResNet18', {'final_norm': False}, CIFAR, 11_171_146),  # kuangliu/pytorch-cifar
    ('PreActResNet18', {'stem_stride': 2}, TINY, 11_172_170),
    ('DucatResNet18', {}, CIFAR, 13_958_986),  # 13.96 M
    ('ResNet18', {}, CIFAR, 11_173_962),  # 9,600 of BatchNorm, 5,130 head, the rest convolutions
    ('ResNet50', {}, (224, 224, 3), 23_528_522),  # torchvision's 25,557,032, less 990 outputs of 2,049 each
    ('WideResNet28_10', {}, CIFAR, 36_479_194),  # 36.5 M in Zagoruyko and Komodakis, table 4
    ('WideResNet34_10', {}, CIFAR, 46_160_474),  # without the block that TRADES never calls
])
def test_parameter_counts_are_the_published_ones(name, other, image, count):
  variables = shapes(getattr(models, name)(num_outputs=10, **other), image)
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == count


@pytest.mark.parametrize('name, image, other', [
    ('SmallCNN', MNIST, {}),
    ('SmallCNN', DIGITS, dict(padding='SAME', batch_norm=True)),
    ('PreActResNet18', CIFAR, dict(width=8)),
    ('PreActResNet18', TINY, dict(width=8, stem_stride=2)),
    ('DucatResNet18', TINY, dict(width=8, stem_stride=2)),
    ('WideResNet28_10', CIFAR, {}),
    ('WideResNet34_10', CIFAR, {}),
])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', jnp.bfloat16])
def test_logits_and_parameters_are_float32(name, image, other, dtype):
  model = getattr(models, name)(num_outputs=7, dtype=dtype, **other)
  variables = shapes(model, image)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  x = jax.ShapeDtypeStruct((3, *image), jnp.float32)
  trained, updated = jax.eval_shape(functools.partial(train, model), variables, x)
  for logits in (jax.eval_shape(model.apply, variables, x), trained):
    assert logits.shape == (3, 7) and logits.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))


@pytest.mark.parametrize('name', SMALL)
def test_float64_models_have_no_other_dtype(name):
  with jax.enable_x64(True):
    model = small(name, dtype=jnp.float64)
    variables = shapes(model, (8, 8, 3))
    x = jax.ShapeDtypeStruct((3, 8, 8, 3), jnp.float64)
    out = jax.eval_shape(functools.partial(train, model), variables, x)
    assert {x.dtype for x in jax.tree.leaves((variables, out))} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_is_close_to_float32(name):
  variables, x = variables_of(small(name)), images(64)
  exact, updated = train(small(name), variables, x)
  rough, updated_rough = train(small(name, dtype=jnp.bfloat16), variables, x)
  # bfloat16 has 8 bits: an error of 2^-8 per operation, with about ten operations in a row.
  scale = float(jnp.abs(exact).max())
  assert 0 < float(jnp.abs(exact - rough).max()) < 10 * 2 ** -8 * scale
  for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(updated_rough), strict=True):
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_batch_statistics_are_computed_in_float32():
  # 2^14 values of 1 + 2^-7: a bfloat16 sum would stop growing at 256.
  x = jnp.full((4, 64, 64, 1), 1 + 2 ** -7, jnp.bfloat16)
  norm = layers.BatchNorm(train=True, axis_name=None, dtype=jnp.bfloat16)
  variables = norm.init(jax.random.key(0), x)
  _, updated = jax.jit(lambda v, x: norm.apply(v, x, mutable=['batch_stats']))(variables, x)
  np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * (1 + 2 ** -7), rtol=1e-6)


@pytest.mark.parametrize('name', SMALL)
def test_normalize_equals_normalised_inputs(name):
  variables, x = variables_of(small(name)), images(4)
  mean, std = (jnp.asarray(part) for part in NORMALIZE)
  plain = jax.jit(small(name).apply)
  inside = jax.jit(small(name, normalize=NORMALIZE).apply)(variables, x)
  outside = plain(variables, (x - mean) / std)
  np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)
  assert float(jnp.abs(inside - plain(variables, x)).max()) > 1e-3


@pytest.mark.parametrize('name', SMALL)
def test_inference_has_no_collectives(name):
  model = small(name, axis_name='batch')
  variables = shapes(model, (8, 8, 3))
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

  # vmap would evaluate a collective over its own axis, so the axis is only named here.
  def program(apply):
    return str(jax.make_jaxpr(apply, axis_env=[('batch', 2)])(variables, x))

  assert 'psum' in program(functools.partial(train, model))
  assert 'psum' not in program(model.apply)
  jax.eval_shape(model.apply, variables, x)  # the axis need not exist


@pytest.mark.parametrize('name', SMALL)
def test_training_statistics_are_those_of_the_global_batch(name):
  with jax.enable_x64(True):
    x = images(8, dtype=jnp.float64)
    alone = small(name, dtype=jnp.float64)
    shared = small(name, dtype=jnp.float64, axis_name='batch')
    variables = variables_of(alone)
    whole, whole_stats = train(alone, variables, x)
    parts, parts_stats = jax.jit(jax.vmap(
        functools.partial(train, shared), in_axes=(None, 0), axis_name='batch'))(
            variables, x.reshape(4, 2, *x.shape[1:]))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(jax.tree.leaves(parts_stats), jax.tree.leaves(whole_stats), strict=True):
      np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-12)


def test_small_cnn_rejects_images_that_are_too_small():
  with pytest.raises(errors.UserError, match="use 'SAME'"):
    shapes(models.SmallCNN(num_outputs=10), DIGITS)


def test_wide_resnet_rejects_other_depths():
  with pytest.raises(errors.UserError, match='6n'):
    shapes(models.WideResNet(num_outputs=10, depth=18), CIFAR)


def test_zero_head_is_initialised_to_zero():
  model = small('SmallCNN', zero_head=True)
  head = jax.jit(lambda key: model.init(key, images(1))['params']['fc2'])(jax.random.key(0))
  assert not head['kernel'].any() and not head['bias'].any()


@pytest.mark.parametrize('init, bound', [
    (layers.torch_default, 1 / 50 ** 0.5), (layers.torch_default_bias(50), 1 / 50 ** 0.5)])
def test_initialisation_is_that_of_pytorch(init, bound):
  drawn = np.asarray(init(jax.random.key(0), (50, 200), jnp.float32))
  assert 0.99 * bound < np.abs(drawn).max() <= bound
  # The standard deviation of the uniform distribution is bound/√3; 10^4 draws estimate it to about 0.5 %.
  np.testing.assert_allclose(drawn.std(), bound / 3 ** 0.5, rtol=0.03)


def test_max_pool_and_its_gradient_equal_those_of_linen():
  x = images(2, (7, 6, 3))
  linen_max_pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))

  def value_and_gradient(pool):
    return jax.jit(jax.value_and_grad(lambda x: (pool(x) ** 2).sum()))(x)

  for a, b in zip(value_and_gradient(layers.max_pool), value_and_gradient(linen_max_pool), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)

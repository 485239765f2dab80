"""The models: sizes, shapes, precision, BatchNorm over devices, and the convolution's derivatives."""

import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors
from at_jax import models
from at_jax.models import convolution
from at_jax.models import layers

if hasattr(jax, 'enable_x64'):
  enable_x64 = jax.enable_x64
else:  # Before jax 0.8.
  from jax.experimental import enable_x64

CIFAR, TINY, MNIST, DIGITS = (32, 32, 3), (64, 64, 3), (28, 28, 1), (8, 8, 1)
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

# Small versions, so that a test compiles in seconds.
SMALL = {
    'SmallCNN': dict(features=(4, 4), hidden=(8,), padding='SAME', batch_norm=True),
    'PreActResNet18': dict(width=4, stage_sizes=(1, 1)),
    'DucatResNet18': dict(width=4, stage_sizes=(1, 1)),
    'WideResNet': dict(depth=10, widen_factor=1),
}


def small(name, **other):
  return getattr(models, name)(num_outputs=5, **{**SMALL[name], **other})


def shapes(model, image):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))


def images(count, image=(8, 8, 3), dtype=jnp.float32):
  # From numpy: jax.random compiles anew for every shape.
  return jnp.asarray(np.random.default_rng(7).uniform(size=(count, *image)), dtype)


def variables_of(model):
  """Statistics and scales differ from their start, so that a mix-up would show."""
  random = np.random.default_rng(3)
  return jax.tree.map(
      lambda x: jnp.asarray(random.uniform(-0.3, 0.3, x.shape) + (len(x.shape) == 1), x.dtype),
      shapes(model, (8, 8, 3)))


def train(model, variables, x):
  return jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats']))(variables, x)


@pytest.mark.parametrize('name, other, image, count', [
    # PyTorch modules of the sources that the docstrings name, sum(p.numel() for p in parameters()).
    # By hand for TRADES' CNN: 320 + 9,248 + 18,496 + 36,928, then 205,000 + 40,200 + 2,010.
    ('SmallCNN', {}, MNIST, 312_202),
    ('PreActResNet18', {}, CIFAR, 11_172_170),  # Rice et al., AWP: with the last BatchNorm's 2·512
    ('PreActResNet18', {'final_norm': False}, CIFAR, 11_171_146),  # kuangliu/pytorch-cifar
    ('PreActResNet18', {'stem_stride': 2}, TINY, 11_172_170),
    ('DucatResNet18', {}, CIFAR, 13_958_986),  # 13.96 M
    ('WideResNet28_10', {}, CIFAR, 36_479_194),  # 36.5 M in Zagoruyko and Komodakis, table 4
    ('WideResNet34_10', {}, CIFAR, 46_160_474),  # 46.2 M, less TRADES' block that is never called
])
def test_parameter_counts(name, other, image, count):
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
def test_shapes_and_dtypes(name, image, other, dtype):
  model = getattr(models, name)(num_outputs=7, dtype=dtype, **other)
  variables = shapes(model, image)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  x = jax.ShapeDtypeStruct((3, *image), jnp.float32)
  trained, updated = jax.eval_shape(functools.partial(train, model), variables, x)
  for logits in (jax.eval_shape(model.apply, variables, x), trained):
    assert logits.shape == (3, 7) and logits.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))


@pytest.mark.parametrize('name', SMALL)
def test_float64_throughout(name):
  with enable_x64(True):
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
  # bfloat16 keeps 8 bits: 2^-8 per operation, about ten in a row.
  scale = float(jnp.abs(exact).max())
  assert 0 < float(jnp.abs(exact - rough).max()) < 10 * 2 ** -8 * scale
  for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(updated_rough)):
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_batch_statistics_are_accumulated_in_float32():
  # The mean of 2^14 values 1 + 2^-7: summed in bfloat16 it would stop growing at 256.
  x = jnp.full((4, 64, 64, 1), 1 + 2 ** -7, jnp.bfloat16)
  norm = layers.batch_norm(train=True, axis_name=None, dtype=jnp.bfloat16)()
  variables = norm.init(jax.random.key(0), x)
  _, updated = jax.jit(lambda v, x: norm.apply(v, x, mutable=['batch_stats']))(variables, x)
  np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * (1 + 2 ** -7), rtol=1e-6)


@pytest.mark.parametrize('name', SMALL)
def test_normalising_inside_equals_outside(name):
  variables, x = variables_of(small(name)), images(4)
  mean, std = (jnp.asarray(part) for part in NORMALIZE)
  plain = jax.jit(small(name).apply)
  inside = jax.jit(small(name, normalize=NORMALIZE).apply)(variables, x)
  outside = plain(variables, (x - mean) / std)
  np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)
  assert float(jnp.abs(inside - plain(variables, x)).max()) > 1e-3


@pytest.mark.parametrize('name', SMALL)
def test_evaluation_needs_no_communication(name):
  model = small(name, axis_name='batch')
  variables = shapes(model, (8, 8, 3))
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

  # vmap would resolve a collective over its own axis at once, so the axis is only named here.
  def program(apply):
    return str(jax.make_jaxpr(apply, axis_env=[('batch', 2)])(variables, x))

  assert 'psum' in program(functools.partial(train, model))
  assert 'psum' not in program(model.apply)
  jax.eval_shape(model.apply, variables, x)  # Nor must the axis exist.


@pytest.mark.parametrize('name', SMALL)
def test_training_statistics_are_the_global_batch(name):
  with enable_x64(True):
    x = images(8, dtype=jnp.float64)
    alone = small(name, dtype=jnp.float64)
    shared = small(name, dtype=jnp.float64, axis_name='batch')
    variables = variables_of(alone)
    whole, whole_stats = train(alone, variables, x)
    parts, parts_stats = jax.jit(jax.vmap(
        functools.partial(train, shared), in_axes=(None, 0), axis_name='batch'))(
            variables, x.reshape(4, 2, *x.shape[1:]))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(jax.tree.leaves(parts_stats), jax.tree.leaves(whole_stats)):
      np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-12)


def test_small_cnn_says_when_the_image_is_too_small():
  with pytest.raises(errors.UserError, match="use 'SAME'"):
    shapes(models.SmallCNN(num_outputs=10), DIGITS)


def test_wide_resnet_says_which_depths_there_are():
  with pytest.raises(errors.UserError, match='6n'):
    shapes(models.WideResNet(num_outputs=10, depth=18), CIFAR)


def test_zero_head_starts_at_zero():
  model = small('SmallCNN', zero_head=True)
  head = jax.jit(lambda key: model.init(key, images(1))['params']['fc2'])(jax.random.key(0))
  assert not head['kernel'].any() and not head['bias'].any()


@pytest.mark.parametrize('init, bound', [
    (layers.torch_default, 1 / 50 ** 0.5), (layers.torch_default_bias(50), 1 / 50 ** 0.5)])
def test_initialisation_is_pytorchs(init, bound):
  drawn = np.asarray(init(jax.random.key(0), (50, 200), jnp.float32))
  assert 0.99 * bound < np.abs(drawn).max() <= bound
  # A uniform distribution's standard deviation is bound/√3; 10^4 draws know it to about 0.5 %.
  np.testing.assert_allclose(drawn.std(), bound / 3 ** 0.5, rtol=0.03)


def test_max_pool_is_linens_with_its_gradient():
  x = images(2, (7, 6, 3))
  theirs = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))

  def value_and_gradient(pool):
    return jax.jit(jax.value_and_grad(lambda x: (pool(x) ** 2).sum()))(x)

  for a, b in zip(value_and_gradient(layers.max_pool), value_and_gradient(theirs)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


# The convolution's derivatives, against JAX's own.
LAYOUT = ('NHWC', 'HWIO', 'NHWC')
CASES = [
    (3, (1, 1), 'VALID', (6, 7)), (3, (1, 1), 'SAME', (6, 7)), (3, (2, 2), ((1, 1), (1, 1)), (8, 7)),
    (3, (2, 2), 'VALID', (8, 9)), (3, (2, 1), ((0, 2), (1, 0)), (7, 8)), (1, (1, 1), 'SAME', (5, 5)),
    (1, (2, 2), 'VALID', (8, 7)), (1, (2, 2), ((1, 1), (0, 1)), (6, 7)),
]


def squares(conv, strides, padding):
  return lambda x, k: (conv(x, k, strides, padding, dimension_numbers=LAYOUT) ** 2).sum()


def first(f, x, kernel):
  return jax.grad(f, (0, 1))(x, kernel)


def mapped(f, x, kernel):
  return jax.vmap(jax.grad(f, (0, 1)), (0, None))(jnp.stack([x, 2 * x]), kernel)


def in_a_loop(f, x, kernel):
  def step(carry, _):
    gradients = jax.grad(f, (0, 1))(*carry)
    return jax.tree.map(lambda c, g: c - 1e-3 * g, carry, gradients), None

  return lax.scan(step, (x, kernel), None, length=2)[0]


def reverse_over_reverse(f, x, kernel):
  return jax.grad(lambda x, k: (jax.grad(f)(x, k) ** 3).sum(), (0, 1))(x, kernel)


def forward_over_reverse(f, x, kernel):
  return jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (jnp.cos(x), jnp.sin(kernel)))


def compare(derivative, size, strides, padding, image, dtype, tolerance):
  x, kernel = images(2, (*image, 3), dtype), images(size, (size, 3, 4), dtype) - 0.5
  ours, jaxs = (
      jax.jit(functools.partial(derivative, squares(conv, strides, padding)))(x, kernel)
      for conv in (convolution.conv_general_dilated, lax.conv_general_dilated))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(jaxs)):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize('size, strides, padding, image', CASES)
def test_derivatives_in_float64(size, strides, padding, image):
  with enable_x64(True):
    compare(first, size, strides, padding, image, jnp.float64, 1e-12)


@pytest.mark.parametrize('size, strides, padding, image', CASES[1:3] + CASES[6:7])
@pytest.mark.parametrize(
    'derivative', [first, mapped, in_a_loop, reverse_over_reverse, forward_over_reverse])
def test_derivatives_under_transformations(derivative, size, strides, padding, image):
  # Float32's 6e-8, a sum of 100 terms, relative to the largest entry.
  compare(derivative, size, strides, padding, image, jnp.float32, 2e-6)


def test_forward_mode_alone_is_refused():
  f = squares(convolution.conv_general_dilated, (1, 1), 'SAME')
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
  with pytest.raises(TypeError, match='custom_vjp'):
    jax.jvp(f, (x, kernel), (x, kernel))


@pytest.mark.parametrize('options', [
    dict(rhs_dilation=(2, 2)), dict(lhs_dilation=(2, 2)), dict(feature_group_count=2),
    dict(dimension_numbers=('NCHW', 'HWIO', 'NCHW'))])
def test_what_is_not_covered_goes_to_jax(options):
  x = images(2, (4, 4, 4))
  kernel = images(3, (3, 4 // options.get('feature_group_count', 1), 4))

  def gradient(conv):
    options_ = {'dimension_numbers': LAYOUT, **options}
    return jax.jit(jax.grad(
        lambda x: (conv(x, kernel, (1, 1), ((1, 1), (1, 1)), **options_) ** 2).sum()))(x)

  np.testing.assert_array_equal(
      gradient(convolution.conv_general_dilated), gradient(lax.conv_general_dilated))


@pytest.mark.parametrize('platform', ['cuda', 'tpu', 'rocm'])
def test_other_platforms_get_jaxs_own_derivatives(platform):
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

  def convolutions(conv, platform):
    traced = jax.jit(jax.grad(squares(conv, (2, 2), 'SAME'), (0, 1))).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return sorted(
        line[line.index('dim_numbers'):] for line in text.splitlines()
        if 'stablehlo.convolution' in line)

  theirs = convolutions(lax.conv_general_dilated, platform)
  assert convolutions(convolution.conv_general_dilated, platform) == theirs
  assert convolutions(convolution.conv_general_dilated, 'cpu') != theirs
  assert all('[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]' in line and 'lhs_dilate = [1, 1]' in line
             for line in convolutions(convolution.conv_general_dilated, 'cpu'))

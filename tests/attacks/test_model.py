"""Models that keep their weights inside themselves are attacked with the weights they have now."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _model

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(3)
X = RANDOM.uniform(size=(6, 4)).astype(np.float32)
OLD, NEW = (RANDOM.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
Y = jnp.zeros(6, int)


class Plain:
  """As someone writes a model without any library."""

  def __init__(self, w):
    self.w = w

  def __call__(self, x):
    return x @ self.w

  forward = __call__


class Nested:

  def __init__(self, w):
    self.layer = Plain(w)

  def __call__(self, x):
    return self.layer(x)


class Trainer:
  """What holds the weights is no function; it has a step besides."""

  def __init__(self, w):
    self.held = types.SimpleNamespace(w=w)
    self.step = jnp.zeros(3)

  def logits(self, x):
    return self._layer(x)

  def _layer(self, x):
    return x @ self.weights

  @property
  def weights(self):
    return self.held.w


def nnx(w):
  nnx_lib = pytest.importorskip('flax.nnx')

  class Net(nnx_lib.Module):

    def __init__(self):
      self.w = nnx_lib.Param(jnp.array(w))

    def __call__(self, x):
      return x @ self.w[...]

    forward = __call__

  return Net()


def set_nnx(net, w):
  net.w[...] = w


def set_attribute(net, w):
  net.w = w


def set_numpy(net, w):
  net.w[:] = w


def set_first(layers, w):
  layers[0] = (w, 0.)


def set_held(net, w):
  net.held.w = w


def set_nested(net, w):
  net.layer.w = w


# What is attacked, made from what holds the weights: the object, what it offers and what is around it.
KINDS = {
    'nnx': (nnx, set_nnx, lambda net: net),
    'a method of nnx': (nnx, set_nnx, lambda net: net.forward),
    'Partial of nnx': (nnx, set_nnx, jax.tree_util.Partial),
    'partial of nnx': (nnx, set_nnx, functools.partial),
    'a function around nnx': (nnx, set_nnx, lambda net: lambda x: net(x)),
    'an object': (Plain, set_attribute, lambda net: net),
    'a method of an object': (Plain, set_attribute, lambda net: net.forward),
    'partial of a method': (Plain, set_attribute, lambda net: functools.partial(net.forward)),
    'NumPy written to': (lambda w: Plain(w.copy()), set_numpy, lambda net: net),
    'an object in an object': (Nested, set_nested, lambda net: net),
    'a list of layers': (lambda w: [(w, 0.)], set_first,
                         lambda layers: lambda x: x @ layers[0][0] + layers[0][1]),
    'what a function reads': (Trainer, set_held, lambda net: lambda x: x @ net.held.w),
    'what its methods read': (Trainer, set_held, lambda net: lambda x: net.logits(x)),
    'a default argument': (Plain, set_attribute, lambda net: lambda x, net=net: net(x)),
    'a default by name': (Plain, set_attribute, lambda net: lambda x, *, net=net: net(x)),
    'NumPy as a default': (lambda w: Plain(w.copy()), set_numpy, lambda net: lambda x, w=net.w: x @ w),
}


def attack(logits_fn):
  return attacks.pgd(logits_fn, X, Y, KEY, epsilon=.2, step_size=.05, num_steps=3)


@pytest.mark.parametrize('kind', KINDS)
def test_weights_changed_in_place_are_seen(kind):
  make, change, wrap = KINDS[kind]
  net = make(OLD)
  logits_fn = wrap(net)
  before = attack(logits_fn)
  change(net, NEW)
  for found, w in ((before, OLD), (attack(logits_fn), NEW)):
    fresh = attack(jax.tree_util.Partial(lambda w, x: x @ w, w))
    np.testing.assert_allclose(found.x, fresh.x, atol=1e-6)
    np.testing.assert_allclose(found.loss, fresh.loss, atol=1e-5)
  assert np.abs(before.loss - found.loss).max() > .1


def test_autoattack_sees_them_too():
  net = nnx(OLD)
  run = lambda model: attacks.autoattack(
      model, X, jnp.argmax(model(X), -1), KEY, epsilon=.2, attacks=('apgd-ce',), num_steps=3)
  run(net)
  set_nnx(net, NEW)
  changed, fresh = run(net), run(nnx(NEW))
  np.testing.assert_array_equal(changed.robust, fresh.robust)
  np.testing.assert_array_equal(changed.x, fresh.x)
  assert changed.clean.all() and 0 < changed.robust.sum() < len(X)


GLOBAL = Plain(OLD)


def helper(x):
  return GLOBAL(x)


SIZES = {'scale': 2., 0: 1.}  # names that jax cannot sort


def scaled(x):
  return SIZES['scale'] * GLOBAL(x) / SIZES['scale']


@pytest.mark.parametrize('logits_fn', [
    lambda x: GLOBAL(x),
    jax.vmap(lambda x: GLOBAL(x[None])[0]),
    lambda x: jax.vmap(lambda row: GLOBAL(row))(x),
    lambda x: jnp.stack([GLOBAL(row) for row in x]),
    lambda x: helper(x),
    lambda x: scaled(x),
    lambda x, sizes=SIZES: GLOBAL(sizes[0] * x),
], ids=['itself', 'in vmap', 'a function inside', 'a loop inside', 'a function beside', 'beside a dict',
        'with a dict'])
def test_a_global_name_that_means_another_model_is_noticed(logits_fn, monkeypatch):
  before = attack(logits_fn).loss
  monkeypatch.setitem(globals(), 'GLOBAL', Plain(NEW))
  np.testing.assert_allclose(attack(logits_fn).loss, attack(Plain(NEW)).loss, atol=1e-6)
  assert np.abs(attack(logits_fn).loss - before).max() > .1


def shifted(x):
  return x - GLOBAL.mean


def shifted_beside(x):
  return shifted(x)


def test_weights_are_found_where_they_are_nearest(monkeypatch):
  # The functions beside it come first, and from there the weights are too far down to be looked for.
  weights = net = Plain(OLD)
  for _ in range(6):
    outer = Nested(None)
    outer.layer, outer.mean, net = net, 0., outer

  def call(x):
    x = shifted_beside(x)
    return GLOBAL(x)

  monkeypatch.setitem(globals(), 'GLOBAL', net)
  before = attack(call).loss
  weights.w = NEW
  np.testing.assert_allclose(attack(call).loss, attack(Plain(NEW)).loss, atol=1e-6)
  assert np.abs(attack(call).loss - before).max() > .1


WEIGHTS = None


class State(NamedTuple):
  WEIGHTS: jax.Array


def applied(state, x):
  return x @ state.WEIGHTS


def test_an_attribute_spelled_like_a_global_name_is_not_that(monkeypatch):
  traces = []

  def apply(state, x):
    traces.append(1)
    return applied(state, x)

  counts = []
  for step in range(4):
    monkeypatch.setitem(globals(), 'WEIGHTS', jnp.full(3, step))
    attack(jax.tree_util.Partial(apply, State(jnp.array(OLD))))
    counts.append(len(traces))
  assert counts[0] == counts[-1] > 0


def test_what_a_function_does_not_read_may_change():
  net, traces = Trainer(jnp.array(OLD)), []

  def logits_fn(x):
    traces.append(1)
    return net.logits(x)

  counts = []
  for step in range(4):
    net.step = jnp.full(3, step)
    attack(logits_fn)
    counts.append(len(traces))
  assert counts[0] == counts[-1] > 0


def test_a_module_is_traced_once_for_many_weights():
  nnx_lib, traces = pytest.importorskip('flax.nnx'), []

  class Net(nnx_lib.Module):

    def __init__(self):
      self.w = nnx_lib.Param(jnp.array(OLD))

    def __call__(self, x):
      traces.append(1)
      return x @ self.w[...]

  net = Net()
  attack(net)
  first = len(traces)
  for scale in range(5):
    net.w[...] = OLD * scale
    attack(net)
  attack(Net())
  assert len(traces) == first


def test_equinox_modules_of_a_batch_are_attacked_with_what_is_no_array():
  eqx = pytest.importorskip('equinox')

  class Net(eqx.Module):
    w: jax.Array
    activation: object   # a function is a leaf too, and so are the two below
    drop: eqx.nn.Dropout
    steps: int

    def __call__(self, x):
      out = self.drop(self.activation(x @ self.w))
      return out if self.steps == 1 else 0 * out

  make = lambda w: Net(jnp.array(w), jnp.tanh, eqx.nn.Dropout(.5, inference=True), 1)
  for w in (OLD, NEW):
    expected = attack(jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w), w))
    np.testing.assert_allclose(attack(make(w)).x, expected.x, atol=1e-6)
  assert _model.as_partial(make(OLD)).func == _model.as_partial(make(NEW)).func


def test_a_linen_module_bound_to_its_variables():
  nn = pytest.importorskip('flax.linen')
  bind = lambda w: nn.Dense(3, use_bias=False).bind({'params': {'kernel': w}})
  for w in (OLD, NEW):
    np.testing.assert_allclose(attack(bind(w)).loss, attack(Plain(w)).loss, atol=1e-6)


def test_what_is_left_as_it_was():
  partial = jax.tree_util.Partial(lambda w, x: x @ w, OLD)
  assert _model.as_partial(partial) is partial
  assert _model.as_partial(jnp.sin).func is jnp.sin and not _model.as_partial(jnp.sin).args
  # Equal parts are one program: a fresh partial of the same function compiles nothing.
  parts = [_model.as_partial(functools.partial(jnp.add, w)) for w in (OLD, NEW)]
  assert jax.tree.structure(parts[0]) == jax.tree.structure(parts[1])
  true, one = (_model.as_partial(functools.partial(jnp.sum, keepdims=k)) for k in (True, 1))
  assert jax.tree.structure(true) != jax.tree.structure(one)

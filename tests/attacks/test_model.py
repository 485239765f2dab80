"""A model is attacked with its present weights, and equal programs are compiled once."""

import functools
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, models
from at_jax.attacks import _model

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(3)
X = RANDOM.uniform(size=(6, 4)).astype(np.float32)
OLD, NEW = (RANDOM.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
Y = jnp.zeros(6, int)


class Plain:
  """A model written without any library."""

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
  """The model is a method of an object that holds other arrays as well."""

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


class Slotted:
  __slots__ = ('w',)

  def __init__(self, w):
    self.w = w

  def __call__(self, x):
    return x @ self.w


def set_module(module, w):
  module.w = w


def module_with(w):
  module = types.ModuleType('weights')
  module.w = w
  return module


# A kind of model: make the owner of the weights, change its weights, and get the model from the owner.
KINDS = {
    'nnx': (nnx, set_nnx, lambda net: net),
    'a method of nnx': (nnx, set_nnx, lambda net: net.forward),
    'Partial of nnx': (nnx, set_nnx, jax.tree_util.Partial),
    'partial of nnx': (nnx, set_nnx, functools.partial),
    'a function around nnx': (nnx, set_nnx, lambda net: lambda x: net(x)),
    'an object': (Plain, set_attribute, lambda net: net),
    'a method of an object': (Plain, set_attribute, lambda net: net.forward),
    'partial of a method': (Plain, set_attribute, lambda net: functools.partial(net.forward)),
    'a NumPy array changed in place': (lambda w: Plain(w.copy()), set_numpy, lambda net: net),
    'an object in an object': (Nested, set_nested, lambda net: net),
    'a list of layers': (lambda w: [(w, 0.)], set_first,
                         lambda layers: lambda x: x @ layers[0][0] + layers[0][1]),
    'an attribute of an attribute': (Trainer, set_held, lambda net: lambda x: x @ net.held.w),
    'a property read by a method': (Trainer, set_held, lambda net: lambda x: net.logits(x)),
    '__slots__': (Slotted, set_attribute, lambda net: net),
    'another module': (module_with, set_module, lambda module: lambda x: x @ module.w),
    'a class attribute': (lambda w: type('Net', (), {'w': w}), set_attribute,
                          lambda net: lambda x: x @ net.w),
    'Partial of a closure': (Plain, set_attribute, lambda net: jax.tree_util.Partial(lambda x: net(x))),
    'Partial of a method': (Plain, set_attribute, lambda net: jax.tree_util.Partial(net.forward)),
    'a default argument': (Plain, set_attribute, lambda net: lambda x, net=net: net(x)),
    'a keyword default': (Plain, set_attribute, lambda net: lambda x, *, net=net: net(x)),
    'NumPy as a default': (lambda w: Plain(w.copy()), set_numpy, lambda net: lambda x, w=net.w: x @ w),
}


def attack(logits_fn):
  return attacks.pgd(logits_fn, X, Y, KEY, epsilon=.2, step_size=.05, num_steps=1)


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


def test_autoattack_uses_the_present_weights():
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
], ids=['directly', 'in vmap', 'in an inner function', 'in a loop', 'in another function', 'beside a dict',
        'with a dict'])
def test_a_rebound_global_is_noticed(logits_fn, monkeypatch):
  before = attack(logits_fn).loss
  monkeypatch.setitem(globals(), 'GLOBAL', Plain(NEW))
  np.testing.assert_allclose(attack(logits_fn).loss, attack(Plain(NEW)).loss, atol=1e-6)
  assert np.abs(attack(logits_fn).loss - before).max() > .1


def shifted(x):
  return x - GLOBAL.mean


def shifted_beside(x):
  return shifted(x)


def test_weights_deep_inside_nested_objects_are_noticed(monkeypatch):
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


class State(NamedTuple):
  w: jax.Array


def test_a_partial_of_a_plain_function_is_not_traced(monkeypatch):
  monkeypatch.setattr(_model, '_trace', None)
  apply = lambda state, x: x @ state.w
  for scale in (1, 2):
    found = attack(jax.tree_util.Partial(apply, State(jnp.array(OLD) * scale)))
    np.testing.assert_allclose(found.loss, expected_loss(scale), atol=1e-5)


ADVANCE = sys.modules['at_jax.attacks.pgd']._advance


def num_compiled(run):
  """How many programs of attack steps `run` needs, starting without any."""
  ADVANCE.clear_cache()
  run()
  return ADVANCE._cache_size()


@functools.cache
def expected_loss(scale):
  return attack(jax.tree_util.Partial(lambda w, x: x @ w, scale * OLD)).loss


def check_losses(models):
  """Each model is attacked with its own weights, which are those of OLD times a number."""
  for logits_fn, scale in models:
    np.testing.assert_allclose(attack(logits_fn).loss, expected_loss(scale), atol=1e-5)


def inner_jit(w):
  return lambda x: jax.jit(lambda x: x @ w)(x)


def scan(w):
  return lambda x: jax.lax.scan(lambda c, row: (c + row[0][:, None] * row[1], None), 0 * x @ w, (x.T, w))[0]


def jit_in_scan(w):
  step = lambda c, x: (c, jax.jit(lambda x: x @ w)(x))
  return lambda x: jax.lax.scan(step, 0., x)[1]


def jit_in_while(w):
  body = lambda c: (c[0] + 1, jax.jit(lambda x: x @ w)(c[2]), c[2])
  return lambda x: jax.lax.while_loop(lambda c: c[0] < 1, body, (0, 0 * x @ w, x))[1]


def jit_in_fori(w):
  return lambda x: jax.lax.fori_loop(0, 2, lambda i, c: c + jax.jit(lambda x: x @ w)(x) / 2, 0 * x @ w)


def jit_in_cond(w):
  return lambda x: jax.lax.cond(x[0, 0] < 9, jax.jit(lambda x: x @ w), lambda x: 0 * x @ w, x)


def jit_in_remat(w):
  return lambda x: jax.checkpoint(jax.jit(lambda x: x @ w))(x)


def jit_in_jit(w):
  return lambda x: jax.jit(lambda x: jax.jit(lambda x: x @ w)(x))(x)


NESTED = {
    'closure': lambda w: lambda x: x @ w, 'jit': inner_jit, 'scan': scan, 'jit in jit': jit_in_jit,
    'remat': lambda w: jax.checkpoint(lambda x: x @ w),
    'NumPy': lambda w: lambda x: x @ np.asarray(w), 'NumPy in jit': lambda w: inner_jit(np.asarray(w)),
    'relu': lambda w: lambda x: jax.nn.relu(x @ w) - jax.nn.relu(-x @ w),
    'vmap': lambda w: jax.vmap(lambda x: x @ w),
    'partial': lambda w: functools.partial(lambda w, x: x @ w, w),
    'scalar weight': lambda w: (lambda scale: lambda x: scale * (x @ OLD))(w[0, 0] / OLD[0, 0]),
}


@pytest.mark.parametrize('kind', NESTED)
def test_new_lambdas_over_new_weights_compile_once(kind):
  models = [(NESTED[kind](jnp.array(scale * OLD)), scale) for scale in (1, 2, 3)]
  list(map(expected_loss, (1, 2, 3)))
  assert num_compiled(lambda: check_losses(models)) == 1


@pytest.mark.parametrize('hide', [jit_in_scan, jit_in_fori, jit_in_cond, jit_in_remat])
def test_weights_hidden_in_control_flow_are_never_stale(hide):
  # They stay constants, so each set of weights compiles a program of its own.
  check_losses([(hide(jnp.array(scale * OLD)), scale) for scale in (1, 2, 1)])


def test_a_while_loop_that_hides_weights_is_traced():
  # Reverse mode does not pass through a while loop, so Square attacks this one.
  run = lambda logits_fn: attacks.square(logits_fn, X, Y, KEY, epsilon=.2, num_queries=5).loss
  losses = [run(jit_in_while(jnp.array(w))) for w in (OLD, NEW)]
  for found, w in zip(losses, (OLD, NEW), strict=True):
    np.testing.assert_allclose(found, run(Plain(w)), atol=1e-5)
  assert np.abs(losses[0] - losses[1]).max() > .1


def test_one_lambda_per_batch_compiles_once():
  apply = lambda params, x: x @ params['w']

  def run():
    for step in range(4):
      params = {'w': jnp.array(OLD) * (step + 1.5)}
      attacks.pgd(lambda x, params=params: apply(params, x), X + .001 * step, Y, KEY, epsilon=.2,
                  step_size=.05, num_steps=1, bounds=(0., 2.))

  assert num_compiled(run) == 1


def jvp_rule(w, pull):
  @jax.custom_jvp
  def f(x):
    return x @ w

  f.defjvp(lambda primals, tangents: (f(*primals), tangents[0] @ pull))
  return f


def vjp_rule(w, pull):
  @jax.custom_vjp
  def f(x):
    return x @ w

  f.defvjp(lambda x: (f(x), None), lambda _, cotangent: (cotangent @ pull.T,))
  return f


@pytest.mark.parametrize('rule', [jvp_rule, vjp_rule])
def test_weights_in_a_derivative_rule_are_never_shared(rule):
  # The primal functions are equal; only the rules differ, by the array that they close over.
  w = jnp.array(OLD)
  found = [attack(rule(w, jnp.array(pull))).x for pull in (OLD, -OLD)]
  np.testing.assert_allclose(found[0], attack(Plain(OLD)).x, atol=1e-6)
  assert np.abs(found[0] - found[1]).max() > .1


@pytest.mark.parametrize('rule', [jvp_rule, vjp_rule])
def test_rules_that_read_a_changed_attribute_are_traced_again(rule):
  net = Plain(jnp.array(OLD))
  Reader = type('Reader', (), {'T': property(lambda self: net.w.T)})
  model = rule(jnp.array(OLD), net.w) if rule is jvp_rule else rule(jnp.array(OLD), Reader())
  if rule is jvp_rule:
    model.defjvp(lambda primals, tangents: (model(*primals), tangents[0] @ net.w))
  before = attack(model).x
  net.w = jnp.array(-OLD)
  assert np.abs(attack(model).x - before).max() > .1


@pytest.mark.parametrize('rule', [jvp_rule, vjp_rule])
def test_a_rule_without_weights_compiles_once(rule):
  straight = rule(jnp.eye(3), np.eye(3, dtype=np.float32))
  model = lambda w: lambda x: straight(x @ w)
  models = [(model(jnp.array(scale * OLD)), scale) for scale in (1, 2)]
  list(map(expected_loss, (1, 2)))
  assert num_compiled(lambda: check_losses(models)) == 1


def test_two_callbacks_are_never_shared():
  def through_host(w):
    shape = jax.ShapeDtypeStruct((6, 3), np.float32)
    call = lambda w, x: jax.pure_callback(lambda x: np.asarray(x) @ w, shape, x, vmap_method='sequential')
    def model(x):
      return call(w, x)
    return model

  run = lambda logits_fn: attacks.square(logits_fn, X, Y, KEY, epsilon=.2, num_queries=5).loss
  for w in (OLD, NEW):
    np.testing.assert_allclose(run(through_host(w)), run(Plain(w)), atol=1e-5)


def test_a_callback_reads_its_weights_when_it_runs():
  net, shape = Plain(OLD), jax.ShapeDtypeStruct((6, 3), np.float32)
  host = lambda x: np.asarray(x) @ net.w
  run = lambda: attacks.square(
      lambda x: jax.pure_callback(host, shape, x), X, Y, KEY, epsilon=.2, num_queries=5).loss
  before = run()
  net.w = NEW
  np.testing.assert_allclose(run(), attacks.square(Plain(NEW), X, Y, KEY, epsilon=.2, num_queries=5).loss,
                             atol=1e-5)
  assert np.abs(run() - before).max() > .1


def test_different_programs_of_equal_shape_are_never_shared():
  w = jnp.array(OLD)
  models = [lambda x: jnp.sin(x) @ w, lambda x: jnp.cos(x) @ w, lambda x: x @ w * 2., lambda x: x @ w * 2.5,
            lambda x: jax.jit(lambda x: x @ w)(x) + 0., lambda x: x ** 2 @ w, lambda x: x ** 3 @ w,
            lambda x: x @ (w * np.float32(1 + 2**-23))]
  found = [attack(model).loss for model in models]
  for i, model in enumerate(models):
    result = attack(model)
    np.testing.assert_allclose(result.loss, attacks.losses.cross_entropy(model(result.x), Y), atol=1e-5)
    np.testing.assert_array_equal(result.loss, found[i])


def solver(rate):
  """A model whose weights are equal for all rates; only the solver inside differs."""
  solve = lambda matvec, b: rate * b
  return lambda x: jax.lax.custom_linear_solve(lambda v: v, x @ OLD, solve, transpose_solve=solve)


def conjugate_gradients(maxiter):
  matrix = OLD.T @ OLD + jnp.eye(3)
  solve = lambda b: jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b, maxiter=maxiter)[0]
  return lambda x: jax.vmap(solve)(x @ OLD)


@pytest.mark.parametrize('make', [solver, conjugate_gradients])
def test_models_that_differ_inside_a_solver_are_never_shared(make):
  results = {n: attack(make(n)) for n in (1, 3)}
  for n, result in results.items():
    np.testing.assert_allclose(result.loss, attacks.losses.cross_entropy(make(n)(result.x), Y), atol=1e-5)
  assert np.abs(results[1].loss - results[3].loss).max() > .01


def calls_global(scale, x):
  return scale * helper(x)


def reads_global_in_a_loop(scale, x):
  return scale * jax.vmap(lambda row: GLOBAL(row))(x)


@pytest.mark.parametrize('function', [calls_global, reads_global_in_a_loop])
def test_a_partial_that_reads_globals_is_never_stale(function, monkeypatch):
  model = jax.tree_util.Partial(function, jnp.float32(1))
  before = attack(model).loss
  monkeypatch.setitem(globals(), 'GLOBAL', Plain(NEW))
  np.testing.assert_allclose(attack(model).loss, attack(Plain(NEW)).loss, atol=1e-6)
  assert np.abs(attack(model).loss - before).max() > .1


def even(n, x):
  return x if n == 0 else odd(n - 1, x)


def odd(n, x):
  return even(n - 1, x)


def test_functions_that_hold_no_weights_are_not_traced():
  network = models.deploy(models.SmallCNN(num_outputs=20, padding='SAME'), has_dummies=True)
  assert all(map(_model._is_plain, (network.logits, network.deployed, jnp.sin, even)))
  assert not _model._is_plain(calls_global)


class Counted:
  """A model without weights that counts its calls and, as a linen module, is equal to one with its fields."""
  calls = 0

  def __eq__(self, other):
    return type(self) is type(other)

  def __hash__(self):
    return 0

  def __call__(self, w, x):
    Counted.calls += 1
    return x @ w


def test_as_many_examples_as_classes_are_traced_twice_once():
  # A second trace, with another B, shows whether logits of shape [3, 3] are [B, C] or [C, B].
  x, apply = X[:3], Counted()

  def num_traces(logits_fn):
    Counted.calls = 0
    captured.append(_model.capture(logits_fn, x)[0])  # as an attack that is compiled for it
    return Counted.calls

  captured = []
  new_lambda = lambda w: lambda x: apply(w, x)
  assert [num_traces(new_lambda(w)) for w in (OLD, NEW, NEW)] == [2, 1, 1]
  assert [num_traces(jax.tree_util.Partial(apply, w)) for w in (OLD, NEW, NEW)] == [2, 0, 0]
  for _ in range(2):  # what was refused is refused again
    with pytest.raises(ValueError, match=r'gives shape \(3, 4\) for 4 examples'):
      _model.capture(lambda x: apply(x.T, OLD.T), x)


def test_tied_weights_are_not_shared_with_untied_ones():
  a, b = jnp.array(OLD), jnp.array(NEW)
  for first, second in ((a, a), (a, b), (b, b)):
    model = lambda x, first=first, second=second: x @ first + 2 * (x @ second)
    np.testing.assert_allclose(attack(model).loss, attack(Plain(first + 2 * second)).loss, atol=1e-5)


def test_random_models_are_traced_with_a_key():
  def noisy(w):
    return lambda x, key: x @ w + .01 * jax.random.normal(key, (len(x), 3))

  run = lambda model: attacks.apgd(model, X, Y, KEY, epsilon=.2, num_steps=3, eot=2)
  direct = jax.tree_util.Partial(
      lambda w, x, key: x @ w + .01 * jax.random.normal(key, (len(x), 3)), NEW)
  changed = [run(noisy(jnp.array(w))) for w in (OLD, NEW)]
  np.testing.assert_allclose(changed[1].x, run(direct).x, atol=1e-6)
  assert np.abs(changed[0].loss - changed[1].loss).max() > .1


def test_weights_may_be_tracers_of_the_caller():
  found = jax.jit(lambda w: attack(lambda x: x @ w).loss)
  many = jax.jit(jax.vmap(lambda w: attack(inner_jit(w)).loss))(np.stack([OLD, NEW]))
  steps = jax.lax.scan(lambda _, w: (0., attack(lambda x: x @ w).loss), 0., np.stack([OLD, NEW]))[1]
  for i, w in enumerate((OLD, NEW)):
    np.testing.assert_allclose(found(w), attack(Plain(w)).loss, atol=1e-5)
    np.testing.assert_allclose(many[i], attack(Plain(w)).loss, atol=1e-5)
    np.testing.assert_allclose(steps[i], attack(Plain(w)).loss, atol=1e-5)


def test_one_lambda_in_two_transformations_leaks_no_tracer():
  net = Plain(OLD)

  def under_jit(w):
    net.w = w
    return attack(net).loss

  for w in (OLD, NEW):
    np.testing.assert_allclose(jax.jit(under_jit)(w), attack(Plain(w)).loss, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(under_jit)(w[None])[0], attack(Plain(w)).loss, atol=1e-5)


def test_the_caller_can_differentiate_through_the_weights():
  # The attack's points are held fixed by the caller, as in adversarial training.
  def loss(w):
    x = jax.lax.stop_gradient(attack(lambda x: x @ w).x)
    return jnp.sum(attacks.losses.cross_entropy(x @ w, Y))

  assert np.isfinite(jax.jit(jax.grad(loss))(jnp.array(OLD))).all()


def test_sharded_weights_keep_their_sharding():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('a',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'a'))
  w = jax.device_put(jnp.array(OLD), sharding)
  model, num_classes = _model.capture(lambda x: x @ w, jnp.array(X))
  leaf, = jax.tree.leaves(model)
  assert leaf.sharding == sharding and num_classes == 3
  np.testing.assert_allclose(attack(lambda x: x @ w).loss, attack(Plain(OLD)).loss, atol=1e-6)


def test_restarts_and_an_input_of_another_shape():
  model = lambda x: x @ jnp.array(OLD)
  for n in (6, 3):
    found = attacks.pgd(model, X[:n], Y[:n], KEY, epsilon=.2, step_size=.05, num_steps=1, restarts=2)
    assert found.x.shape == (n, 4)
  captured, _ = _model.capture(model, X)
  with pytest.raises(AssertionError, match='traced for'):
    captured(X[:3])


def test_the_precision_at_the_call_is_used():
  w = jnp.array(OLD)

  def run():
    for precision in ('float32', 'bfloat16', 'float32'):
      with jax.default_matmul_precision(precision):
        attack(lambda x: x @ w)

  assert num_compiled(run) == 2
  with jax.enable_x64(True):
    found = attacks.pgd(lambda x: x @ np.asarray(OLD, np.float64), np.asarray(X, np.float64), Y, KEY,
                        epsilon=.2, step_size=.05, num_steps=1)
    assert found.x.dtype == found.loss.dtype == np.float64


def test_weak_types_are_distinguished():
  for scale in (2., np.float32(2.), jnp.float32(2.), np.float64(2.)):
    found = attack(lambda x, scale=scale: (x * scale) @ OLD)
    np.testing.assert_allclose(found.loss, expected_loss(2), atol=1e-5)


def test_weights_changed_right_after_the_call_have_no_effect():
  w = OLD.copy()
  result = attack(lambda x: x @ w)
  w[:] = np.nan
  np.testing.assert_allclose(result.loss, attack(Plain(OLD)).loss, atol=1e-6)


def test_a_module_compiles_once_for_many_weights():
  net = nnx(OLD)

  def run():
    for scale in range(5):
      net.w[...] = OLD * scale
      attack(net)
    attack(nnx(OLD))

  assert num_compiled(run) == 1


def test_a_module_that_draws_updates_its_state_in_the_trace():
  nnx_lib = pytest.importorskip('flax.nnx')

  class Net(nnx_lib.Module):

    def __init__(self):
      self.w, self.drop = nnx_lib.Param(jnp.array(OLD)), nnx_lib.Dropout(.5, rngs=nnx_lib.Rngs(0))

    def __call__(self, x):
      return self.drop(x) @ self.w[...]

  assert np.isfinite(attack(Net()).x).all()


def test_equinox_modules_compile_once():
  eqx = pytest.importorskip('equinox')

  class Net(eqx.Module):
    w: jax.Array
    activation: object   # a function is a leaf, and so are the two below
    drop: eqx.nn.Dropout
    steps: int

    def __call__(self, x):
      out = self.drop(self.activation(x @ self.w))
      return out if self.steps == 1 else 0 * out

  make = lambda w: Net(jnp.array(w), jnp.tanh, eqx.nn.Dropout(.5, inference=True), 1)
  for w in (OLD, NEW):
    expected = attack(jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w), w))
    np.testing.assert_allclose(attack(make(w)).x, expected.x, atol=1e-6)
  assert _model.capture(make(OLD), X)[0].func == _model.capture(make(NEW), X)[0].func


def test_a_bound_linen_module_is_attacked():
  nn = pytest.importorskip('flax.linen')
  bind = lambda w: nn.Dense(3, use_bias=False).bind({'params': {'kernel': w}})
  for w in (OLD, NEW):
    np.testing.assert_allclose(attack(bind(w)).loss, attack(Plain(w)).loss, atol=1e-6)


def test_a_partial_of_a_plain_function_is_returned_as_it_is():
  partial = jax.tree_util.Partial(lambda w, x: x @ w, OLD)
  assert _model.capture(partial, X) == (partial, 3)
  keepdims = [_model.capture(functools.partial(jnp.cumsum, axis=a), X)[0] for a in (1, 1, 0)]
  assert keepdims[0].func == keepdims[1].func != keepdims[2].func

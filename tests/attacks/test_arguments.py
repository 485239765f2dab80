"""Invalid arguments are refused before anything is computed, in one line with the remedy."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, errors, models
from at_jax.attacks import _arguments, losses
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.square import stepper as square_stepper
from at_jax.models import importers
from tests.fixtures import small_models

KEY = jax.random.key(0)
W = np.random.RandomState(0).normal(size=(4, 3)).astype(np.float32)
X, Y = np.full((5, 4), .5, np.float32), np.arange(5) % 3
model = lambda x: x @ W
ATTACKS = {
    'pgd': lambda *arguments, **options: attacks.pgd(
        *arguments, step_size=.1, num_steps=2, **options),
    'apgd': lambda *arguments, **options: attacks.apgd(*arguments, num_steps=2, **options),
    'fab': lambda *arguments, **options: attacks.fab(*arguments, num_steps=2, **options),
    'square': lambda *arguments, **options: attacks.square(*arguments, num_queries=2, **options),
    'autoattack': lambda *arguments, **options: attacks.autoattack(
        *arguments, num_steps=2, num_queries=2, attacks=('apgd-ce', 'square'), **options),
}
WRONG = [
    (dict(epsilon=-.1), 'epsilon = -0.1.*at least 0'),
    (dict(epsilon=float('nan')), 'epsilon = nan'),
    (dict(epsilon='8/255'), "epsilon = '8/255': use a number, without quotes"),
    (dict(x=X[:0], y=Y[:0]), 'x has no examples'),
    (dict(y=Y[:, None]), r'y has shape \(5, 1\).*y\[:, 0\] of a column'),
    (dict(epsilon=np.full(5, .1) * [1, 1, -1, 1, 1]), 'epsilon = -0.1'),
    (dict(epsilon=np.full(3, .1)), r'epsilon has shape \(3,\)'),
    (dict(y=Y - 1), 'y reaches from -1 to 1'),
    (dict(y=Y + 1), r'y reaches from 1 to 3: classes are 0\.\.2'),
    (dict(y=Y.astype(np.float32)), 'y has dtype float32: use integers'),
    (dict(logits_fn=lambda x, key: x @ W), r"cannot be called as \(x\), .*'key'.*version='rand'"),
    (dict(logits_fn=lambda x, *, train: x @ W),
     r"cannot be called as \(x\), .*'train'.*lambda x: model\(x, train=False\)"),
    (dict(logits_fn=lambda x: x.sum(1)), r'gives shape \(5,\).*stack'),
    (dict(logits_fn=lambda x: x.sum(1, keepdims=True)), r'gives shape \(5, 1\).*stack'),
    (dict(logits_fn=lambda x: (x @ W)[:, :, None]), r'one column per class'),
    (dict(y=np.eye(3)[Y]), r'y has shape \(5, 3\).*argmax'),
    (dict(bounds=(.6, 1.)), r'x reaches from 0\.5 to 0\.5, beyond 0\.6\.\.1: give bounds'),
    (dict(bounds=(1., 0.)), r'bounds = 1\.\.0: use'),
    (dict(bounds=1.), r'bounds = 1\.0: use two'),
    (dict(bounds=(0., .5, 1.)), r'bounds = \(0\.0, 0\.5, 1\.0\): use two'),
    (dict(bounds=np.array(1.)), r'bounds = 1\.0: use two'),
    (dict(logits_fn=3), 'logits_fn = 3: use a function'),
    (dict(index=np.arange(4)), r'index has shape \(4,\)'),
    (dict(index=np.arange(6)), r'index has shape \(6,\)'),
    (dict(index=np.arange(5.)), 'dtype float32'),
    (dict(logits_fn=lambda x: (x @ W, {})), r'gives a tuple: return the logits alone'),
    (dict(x=X.astype(np.float16)), 'x has dtype float16.*use float32'),
    (dict(x=np.where(np.arange(20).reshape(5, 4) % 9, X, np.nan)), 'x is NaN in 3 of 5 examples'),
    (dict(x=X[0], y=Y[0]), r'y has shape \(\): use one class per example.*x\[None\]'),
]


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('wrong, message', WRONG, ids=lambda value: value if isinstance(value, str) else '')
def test_invalid_arguments_are_named(name, wrong, message):
  given = dict(logits_fn=model, x=X, y=Y, epsilon=.1) | wrong
  logits_fn, x, y = given.pop('logits_fn'), given.pop('x'), given.pop('y')
  with pytest.raises(ValueError, match=message) as caught:
    ATTACKS[name](logits_fn, x, y, KEY, **given)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ATTACKS)
def test_a_decorated_model_is_accepted(name):
  network = lambda x, train: x @ W
  wrapped = functools.wraps(network)(lambda x: network(x, False))
  plain, decorated = (ATTACKS[name](fn, X, Y, KEY, epsilon=.1) for fn in (model, wrapped))
  np.testing.assert_array_equal(plain.x, decorated.x)


def test_a_decorated_random_model_is_accepted():
  random_model = lambda x, key: jax.vmap(lambda v: v @ W)(x)
  wrapped = functools.wraps(lambda x, key, train: x)(random_model)
  verdicts = [attacks.autoattack(fn, X, Y, KEY, epsilon=.1, version='rand', num_steps=2, num_queries=2).robust
              for fn in (random_model, wrapped)]
  np.testing.assert_array_equal(*verdicts)


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'fab', 'square'])
def test_valid_inputs_are_not_copied_to_the_host(name, monkeypatch):
  x, y = jnp.asarray(X), jnp.asarray(Y)
  run = lambda **options: ATTACKS[name](model, x, y, KEY, epsilon=.1, **options)
  run()
  copied, to_host = [], np.asarray

  def spy(value, *rest, **options):
    copied.extend([value.shape] if isinstance(value, jax.Array) else [])
    return to_host(value, *rest, **options)

  monkeypatch.setattr(np, 'asarray', spy)
  run()
  assert not [shape for shape in copied if shape], copied
  with pytest.raises(ValueError, match='x reaches from'):  # the message needs the values
    run(bounds=(.6, 1.))
  assert x.shape in copied


@pytest.mark.parametrize('name', ATTACKS)
def test_only_fab_accepts_an_infinite_radius(name):
  # All others draw a start in the ball, and ∞ times a draw of 0 is no number.
  run = lambda: ATTACKS[name](model, X, Y, KEY, epsilon=np.array([.1, np.inf, .1, .1, .1]))
  if name == 'fab':
    result = run()
    assert np.isfinite(result.x).all()
    np.testing.assert_array_equal(result.success, np.argmax(model(result.x), axis=1) != Y)
  else:
    with pytest.raises(ValueError, match='epsilon = inf: use a number of at least 0 and finite'):
      run()


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('key', [0, np.zeros(2), jax.random.split(KEY)])
def test_an_invalid_key_is_named(name, key):
  with pytest.raises(ValueError, match=r'key = .*jax\.random\.key\(0\)'):
    ATTACKS[name](model, X, Y, key, epsilon=.1)


@pytest.mark.parametrize('x, bounds, fine', [
    (jnp.array([[2.64, -2.1179]], jnp.bfloat16), (-2.1179, 2.64), True),  # as rounded
    (np.array([[1.0001, 0.]]), (0., 1.), False),
    (np.array([[-1., 2.]]), (np.array([-1., 0.]), np.array([1., 2.])), True),  # a channel's own
    (np.array([[-1., 2.]]), (np.array([0., 0.]), np.array([1., 2.])), False),
    (np.array([[-9., 9.]]), (-np.inf, np.inf), True)])
def test_bounds_allow_rounding_of_the_dtype(x, bounds, fine):
  if fine:
    return _arguments.check_values(x=jnp.asarray(x), bounds=bounds)
  with pytest.raises(ValueError, match='x reaches from'):
    _arguments.check_values(x=jnp.asarray(x), bounds=bounds)


@pytest.mark.parametrize('call, message', [
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=-.1, num_steps=2), 'step_size = -0.1'),
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=2.), 'num_steps = 2.0'),
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=2, restarts=0),
     'restarts = 0'),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, num_steps=0), 'num_steps = 0'),
    (lambda: attacks.fab(model, X, Y, epsilon=.1, num_steps=1.5), 'num_steps = 1.5'),
    (lambda: attacks.square(model, X, Y, KEY, epsilon=.1, num_queries=True - 1), 'num_queries = 0'),
    (lambda: attacks.autoattack(model, X, Y, KEY, epsilon=.1, batch_size=8.), 'batch_size = 8.0'),
    (lambda: attacks.autoattack(model, X, Y, KEY, epsilon=.1, batch_size=True), 'batch_size = True'),
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=1, restarts=np.True_),
     'restarts = True: use a whole number'),
    (lambda: attacks.apgd(lambda x, key: x @ W, X, Y, KEY, epsilon=.1, eot=True), 'eot = True'),
    (lambda: attacks._diagnostics.check_model(lambda x: x[:, :1], X, Y), 'one logit z of two classes'),
])
def test_counts_and_step_sizes_are_checked(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize('wrong', [True, np.True_, 1.])
def test_a_count_equal_to_one_of_an_earlier_call_is_refused(wrong):
  # Steppers are cached, and 1 == 1. == True.
  for stepper, name in ((apgd_stepper, 'num_steps'), (square_stepper, 'num_queries')):
    options = dict(norm='linf')
    assert stepper(**options, **{name: 1}) is stepper(**options, **{name: 1})
    with pytest.raises(ValueError, match=f'{name} = .*: use a whole number above 0'):
      stepper(**options, **{name: wrong})


def test_targets_and_classes_of_random_models_are_checked():
  with pytest.raises(ValueError, match='target reaches from 3 to 3'):
    attacks.fab(model, X, Y, epsilon=.1, num_steps=1, target=np.full(5, 3))
  with pytest.raises(ValueError, match='y reaches'):
    attacks.apgd(lambda x, key: x @ W, X, Y + 1, KEY, epsilon=.1, num_steps=1, eot=2)


EDGES = np.tile(np.array([0, 1, 0, 1], np.float32), (5, 1))


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'square'])
def test_a_radius_in_other_units_warns(name):
  with pytest.warns(UserWarning, match='epsilon = 8 covers the whole input domain 0..1.*8/255'):
    ATTACKS[name](model, X, Y, KEY, epsilon=8)
  with pytest.warns(UserWarning, match='epsilon = 0.031.* changes next to nothing where x is 0..255.* 8$'):
    ATTACKS[name](model, 255 * EDGES, Y, KEY, epsilon=8 / 255, bounds=(0., 255.))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    ATTACKS[name](model, X, Y, KEY, epsilon=8 / 255)
    jax.jit(lambda e: ATTACKS[name](model, X, Y, KEY, epsilon=e).x)(8.)


PGD = dict(epsilon=.1, step_size=.1, num_steps=2)


@pytest.mark.parametrize('call, message', [
    (lambda: attacks.fab(model, X, Y, epsilon=.1, target=1), r'target has shape \(\): use \(5,\)'),
    (lambda: attacks.fab(model, X, Y, epsilon=.1, target=np.ones(1, int)), r'target has shape \(1,\)'),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, target=np.ones((5, 1), int),
                          loss=losses.targeted_dlr), r'target has shape \(5, 1\)'),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, eot=2),
     r'cannot be called as \(x, key\), too many positional'),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, eot=-1), 'eot = -1'),
    (lambda: attacks.apgd(lambda x, key: x @ W, X, Y, KEY, epsilon=.1, eot=2.5), 'eot = 2.5'),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, start=X[:2]), r'start has shape \(2, 4\)'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, start=X[0]), r'start has shape \(4,\): use \(5, 4\)'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, start=X * np.nan), 'start is NaN'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, tau=np.ones(4)), r'tau has shape \(4,\)'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, loss=lambda logits, y, clean: (logits * clean).sum(1),
                         loss_args=(X[:2] @ W,)),
     r'loss_args\[0\] has shape \(2, 3\)'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, decide='x'), "decide = 'x': use a function"),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, restarts=3, random_start=False),
     'restarts = 3: use 1 without a random start'),
    (lambda: attacks.pgd(model, X, Y, KEY, **PGD, restarts=3, start=X), 'restarts = 3: use 1'),
    (lambda: attacks.autoattack(model, X, Y, KEY, epsilon=.1, devices=[]), r'devices = \[\]: use some of'),
    (lambda: attacks.autoattack(model, X, Y, KEY, epsilon=.1, devices='cpu'), "devices = 'cpu': use some of"),
    (lambda: attacks.autoattack(3, X, Y, KEY, epsilon=.1, version='rand'), 'logits_fn = 3: use'),
    (lambda: attacks.apgd(3, X, Y, KEY, epsilon=.1, eot=2), 'logits_fn = 3: use'),
    (lambda: attacks.autoattack(model, X, Y * 0, KEY, epsilon=.1, search_fn=lambda x: x @ W[:, :2]),
     'search_fn gives 2 logits, logits_fn 3'),
])
def test_arguments_with_one_row_per_example_are_checked(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('wrong, message', [
    (dict(num_steps=0), 'num_steps = 0'), (dict(num_queries=0), 'num_queries = 0'),
    (dict(norm='l1', num_steps=1), 'num_steps = 1: use at least 2')])
def test_invalid_counts_are_refused_before_the_model_runs(wrong, message):
  asked = []
  with pytest.raises(ValueError, match=message):
    attacks.autoattack(lambda x: asked.append(1) or x @ W, X, Y, KEY, epsilon=.1, **wrong)
  assert not asked


@pytest.mark.parametrize('call, message', [
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, loss=losses.targeted_dlr),
     r"loss = targeted_dlr cannot be called as \(logits, y\), missing a required argument: 'target'"),
    (lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, target=(Y + 1) % 3),
     r'loss = cross_entropy cannot be called as \(logits, y, target\), too many'),
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=1, loss='dlr'),
     r"loss = 'dlr': use a function, losses\.dlr"),
    (lambda: attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=1, loss_args=(X,)),
     r'cannot be called as \(logits, y, loss_args\[0\]\)'),
    (lambda: jax.jit(lambda x: attacks.autoattack(model, x, Y, KEY, epsilon=.1).robust)(X),
     'x is traced: call autoattack outside of jit'),
    (lambda: jax.vmap(lambda e: attacks.autoattack(model, X, Y, KEY, epsilon=e).robust)(np.ones(2)),
     'epsilon is traced'),
    (lambda: jax.jit(lambda i: attacks.autoattack(model, X, Y, KEY, epsilon=.1, index=i).robust)(Y),
     'index is traced'),
    (lambda: jax.vmap(lambda w: attacks.autoattack(lambda x: x @ w, X, Y, KEY, epsilon=.1).robust)(W[None]),
     'logits_fn is traced'),
    (lambda: jax.jit(lambda w: attacks.autoattack(lambda x: x @ w, X, Y, KEY, epsilon=.1).robust)(W),
     'the caller is traced'),
    (lambda: attacks.autoattack(model, X, Y, KEY, epsilon=.1, search_fn=lambda x: (x @ W, x)),
     'gives a tuple'),
    (lambda: attacks.autoattack(lambda x, key: (x @ W, x), X, Y, KEY, epsilon=.1, version='rand'),
     'gives a tuple'),
])
def test_losses_and_outputs_are_checked(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)


def test_only_autoattack_refuses_a_repeated_index():
  # A last batch that is filled up with repeats is attacked all the same.
  twice = np.array([0, 1, 2, 3, 3])
  attacks.pgd(model, X, Y, KEY, epsilon=.1, step_size=.1, num_steps=1, index=twice)
  with pytest.raises(ValueError, match='index has 3 more than once'):
    attacks.autoattack(model, X, Y, KEY, epsilon=.1, index=twice)


@pytest.mark.parametrize('name', ['apgd', 'fab', 'square'])
def test_float64_logits_leave_the_state_in_the_dtype_of_x(name):
  with jax.enable_x64(True):
    wide = lambda x: x.astype(jnp.float64) @ W.astype(np.float64)
    run = lambda x: ATTACKS[name](wide, x, Y, KEY, epsilon=.1)  # a loop of another dtype would not compile
    result = jax.jit(run)(jnp.asarray(X, jnp.float32))
  assert result.x.dtype == result.loss.dtype == jnp.float32


def test_traced_values_are_not_checked():
  run = jax.jit(lambda epsilon, y: attacks.pgd(
      model, X, y, KEY, epsilon=epsilon, step_size=.1, num_steps=1).success)
  assert run(.1, Y).shape == (5,)
  # Classes that are known inside jit are looked at there too.
  for y in (jnp.asarray(Y), jnp.asarray(Y - 1)):
    run = jax.jit(lambda epsilon: attacks.fgsm(model, X, y, epsilon=epsilon).success)
    if y.min() < 0:
      with pytest.raises(ValueError, match='y reaches from -1'):
        run(.1)
    else:
      assert run(.1).shape == (5,)


ROWS = np.ones((5, 4), np.float32)


@pytest.mark.parametrize('wrong, message', [
    (dict(mask=.5 * ROWS), 'mask reaches from 0.5 to 0.5: use 1 where'),
    (dict(bounds=(ROWS[0], 0 * ROWS[0])), r'bounds = 1\.\.0: use the smallest'),
    (dict(bounds=(1., 0.), mask=ROWS), r'bounds = 1\.\.0: use the smallest'),
    (dict(bounds=(.6 * ROWS, ROWS)), r'x reaches from 0\.5 to 0\.5, beyond'),
    (dict(x=X + np.inf), 'x is infinite in 5 of 5'), (dict(y=Y - 1), 'y reaches from -1'),
    (dict(start=X * np.nan), 'start is NaN'), (dict(tau=Y - 1), 'tau = -1')])
@pytest.mark.parametrize('library', [np, jnp])
def test_arrays_of_known_values_are_checked_under_jit_too(wrong, message, library):
  given = jax.tree.map(library.asarray, dict(x=X, y=Y) | wrong)

  def run(w, **traced):
    options = given | traced
    return attacks.pgd(lambda x: x @ w, options.pop('x'), options.pop('y'), KEY, **PGD, **options).x

  with pytest.raises(ValueError, match=message):
    jax.eval_shape(run, W)
  if 'bounds' in wrong and 'beyond' not in message:  # the bounds alone
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(lambda w, x: run(w, x=x), W, X)


@pytest.mark.parametrize('attack', [ATTACKS['pgd'], ATTACKS['square']])
def test_scales_of_known_values_warn_under_jit_too(attack):
  mask = jnp.zeros(X.shape)
  # x spans 0..1, but ε and the bounds are in 0..255.
  with pytest.warns(UserWarning, match='epsilon = 8 is larger than what x spans, 0..1, within bounds 0..255'):
    jax.eval_shape(lambda w: attack(lambda x: x @ w, EDGES, Y, KEY, epsilon=8, bounds=(0., 255.)).x, W)
  with pytest.warns(UserWarning, match='no entry may change: the mask is 0'):
    jax.eval_shape(lambda w: attack(lambda x: x @ w, X, Y, KEY, epsilon=.1, mask=mask).x, W)


def test_the_state_folder_is_made_and_checked_first(tmp_path):
  logits_fn, x, y = small_models.network()
  run = lambda path, model=logits_fn: attacks.autoattack(
      model, x, y, KEY, epsilon=.1, state_path=path, attacks=('square',), num_queries=1)
  run(tmp_path / 'new' / 'one' / 'state.npz')
  assert [p.name for p in (tmp_path / 'new' / 'one').iterdir()] == ['state.npz']

  def never(x):
    raise AssertionError('the model was asked')

  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file' / 'state.npz', tmp_path / 'new'):
    with pytest.raises(OSError):
      run(path, never)


def test_invalid_state_dicts_are_refused():
  with pytest.raises(errors.UserError, match='give a mapping from names to arrays'):
    importers.from_torch(models.SmallCNN(num_outputs=2), [W], (28, 28, 1))
  with pytest.raises(errors.UserError, match='give a mapping'):
    importers.from_torch(models.SmallCNN(num_outputs=2), None, (28, 28, 1))
  with pytest.raises(errors.UserError, match='state_dict = 0: names are strings'):
    importers.from_torch(models.SmallCNN(num_outputs=2), {0: W}, (28, 28, 1))
  # With 'SAME' the sizes can fit, and the rows of the dense kernel would be in another order.
  with pytest.raises(errors.UserError, match='model.stem_stride = 2'):
    importers.from_torch(models.SmallCNN(num_outputs=2, stem_stride=2), {}, (28, 28, 1))
  with pytest.raises(errors.UserError, match=r'image_shape = \(28, 28\): use \(H, W, C\)'):
    importers.from_torch(models.SmallCNN(num_outputs=2), {}, (28, 28))
  with pytest.raises(errors.UserError, match='model = .*weights can be read for SmallCNN'):
    importers.from_torch(model, {}, (28, 28, 1))

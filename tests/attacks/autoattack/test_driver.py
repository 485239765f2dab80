"""The AutoAttack driver: unusual inputs, unusual models and invalid arguments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _loops, _stepper
from tests.fixtures.small_models import KEY, model, network
from tests.fixtures.small_models import quick_autoattack as run

ALL = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')


def test_only_points_that_logits_fn_confirms_are_counted():
  logits_fn, x, y = network()
  # A search model that is wrong everywhere finds nothing that logits_fn confirms at radius 0.
  result = run(logits_fn, x, y, epsilon=0., search_fn=lambda x: -logits_fn(x), names=('apgd-ce', 'fab-t'))
  assert result.robust.all()
  # A search model in bfloat16, including the weights, is right about nearly all examples.
  in_bfloat16, _ = model(5, (4, 3, 1), jnp.bfloat16)
  lower = lambda x: in_bfloat16(x.astype(jnp.bfloat16)).astype(jnp.float32)
  assert in_bfloat16(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  robust = run(logits_fn, x, y, epsilon=.05, names=('apgd-ce',), search_fn=lower).robust
  assert 0 < robust.sum() < len(x)
  assert (robust != run(logits_fn, x, y, epsilon=.05, names=('apgd-ce',)).robust).sum() <= 1


def test_one_unlucky_pass_does_not_fool_a_random_model(monkeypatch):
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)  # 20 unrolled passes compile slowly
  # It errs in one pass of twenty for any input: .95 are correct at first, and .95 of those at the end.
  def flaky(x, key):
    logits = jnp.where(jax.random.bernoulli(key, .05), jnp.array([0., 1.]), jnp.array([1., 0.]))
    return logits + 0 * x.sum(axis=1, keepdims=True)

  at = lambda order, names=('apgd-ce',): run(
      flaky, jnp.full((200, 2), .5), jnp.zeros(200, int), epsilon=0., version='rand', names=names,
      num_steps=10, batch_size=50, index=order)
  order = np.random.RandomState(0).permutation(200)
  whole, part = at(np.arange(200)), at(order)
  assert .9 < whole.clean.mean() < 1 and .8 < whole.robust.mean() < whole.clean.mean()
  # 11 gradients of 20 passes each, and the pass that decides.
  n = whole.clean.sum()
  assert whole.passes['apgd-ce'][:2] == (n * (11 * 20 + 1), n * 11 * 20)
  # The draws depend on the index of the example, also for the clean input.
  np.testing.assert_array_equal(part.clean, whole.clean[order])
  np.testing.assert_array_equal(part.robust, whole.robust[order])
  assert 'the outputs are probabilities' in ' '.join(whole.warnings)
  # Two attacks draw independently: of 200 examples about 9.5 are fooled by each, and .5 by both.
  other = at(np.arange(200), ('apgd-dlr',))
  fooled = [found.clean & ~found.robust for found in (whole, other)]
  assert min(map(np.sum, fooled)) >= 4 and (fooled[0] & fooled[1]).sum() <= 3


def counting(logits_fn, counts):
  """The model, adding the rows of each computed forward and backward pass to counts[0] and counts[1]."""
  def noted(x, where):
    def note(x):
      counts[where] += math.prod(x.shape[:-1])  # its values would wait for the device
      return np.zeros(x.shape, np.float32)
    return x + jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method='broadcast_all')

  @jax.custom_vjp
  def tap(logits):
    return noted(logits, 0)

  tap.defvjp(lambda logits: (noted(logits, 0), None), lambda _, g: (noted(g, 1),))
  return lambda x: tap(logits_fn(x))


def test_passes_are_those_that_a_counting_model_sees():
  logits_fn, x, y = network(n=10)
  seen = [0, 0]
  model, names = counting(logits_fn, seen), ('apgd-t', 'fab-t', 'square')
  robust = run(model, x, y, epsilon=0., batch_size=5, names=names)
  assert robust.robust.all()
  # For each of 10 examples and 4 targets, APGD takes 9 gradients, and FAB makes 8 steps of two forward passes
  # and one backward pass. Square makes 25 queries and the start, in two calls of 20. The checks evaluate all
  # inputs twice, and one batch of 5 six times.
  assert robust.passes == {
      'apgd-t': (360, 360, 0), 'fab-t': (640, 320, 0), 'square': (260, 0, 140), 'checks': (50, 0, 0)}
  total = lambda result: np.sum(list(result.passes.values()), axis=0)
  assert seen == [sum(total(robust)[[0, 2]]), total(robust)[1]]
  # Where some are fooled, slots are empty at the end, and points are confirmed.
  seen[:] = 0, 0
  fooled = run(model, x, y, epsilon=.05, batch_size=5, names=names)
  assert 0 < fooled.robust.sum() < 10 and fooled.passes['apgd-t'].empty
  assert seen[0] == sum(total(fooled)[[0, 2]]) and seen[1] > total(fooled)[1]


def test_invalid_arguments_raise_with_a_remedy():
  logits_fn, x, y = network()
  for options, match in (
      (dict(norm='l0'), 'linf, l2, l1'), (dict(version='quick'), 'standard, plus, rand, fast'),
      (dict(attacks=('apgd',)), 'apgd-ce'), (dict(attacks=('fab', 'fab')), 'each once'),
      (dict(batch_size=0), 'above 0'), (dict(x=3 * x), 'normalise inside'),
      (dict(bounds=(.5, 1.)), 'beyond 0.5..1'), (dict(x=x[..., None]), 'leave it out'),
      (dict(norm='l1', num_steps=1), 'at least 2'),
      (dict(norm='l1', num_steps=1, attacks=('apgd-near',)), 'at least 2'),
      (dict(version='rand', search_fn=logits_fn), 'leave it out'),
      (dict(version='rand', attacks=('apgd-t', 'square', 'fab')), 'square, fab need a deterministic model'),
      (dict(version='rand'), 'cannot be called as .x, key., too many positional arguments')):
    options = dict(x=x) | options
    with pytest.raises(ValueError, match=match):
      attacks.autoattack(logits_fn, y=y, key=KEY, epsilon=.1, **options)
  with pytest.raises(ValueError, match='no examples'):
    attacks.autoattack(logits_fn, x[:0], y[:0], KEY, epsilon=.1)


@pytest.mark.long
@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('num_classes', [2, 3, 4, 8])
def test_all_attacks_work_with_few_classes(norm, num_classes):
  logits_fn, x, y = network(num_classes)
  # In L-inf, random starts fool nothing at this radius, and of 8 classes fewer than the gradients do, so an
  # attack whose loss has no slope for so few classes would stand out.
  epsilon = {'linf': .06, 'l2': .15, 'l1': .4}[norm]
  result = run(logits_fn, x, y, names=ALL, norm=norm, epsilon=epsilon, cascade=False)
  assert list(result.components) == list(ALL)
  num_fooled = {name: int((result.clean & ~robust).sum()) for name, robust in result.components.items()}
  assert 0 < num_fooled['square'] <= max(num_fooled.values()) < len(x)
  assert min(num_fooled[name] for name in ALL[:-1]) >= max(num_fooled.values()) - 1, num_fooled
  assert any(f'{num_classes} classes' in warning for warning in result.warnings) == (num_classes < 4)
  assert np.isfinite(result.x).all()


@pytest.mark.long
@pytest.mark.parametrize('shape', [(12,), (4, 3), (6, 2, 1)])
def test_each_attack_fools_one_example_of_any_shape(shape):
  logits_fn, x, y = network(shape=shape, n=1)
  # The radius is twice the distance of the nearest misclassified point that FAB finds, .123. The start of
  # APGD, the first point that it counts, is classified correctly.
  assert attacks.apgd(logits_fn, x, y, KEY, epsilon=.25, num_steps=1).kappa >= 1
  result = run(logits_fn, x, y, epsilon=.25, names=None, cascade=False, num_queries=200)
  assert result.clean[0]
  assert {name: bool(robust[0]) for name, robust in result.components.items()} == {
      'apgd-ce': False, 'apgd-t': False, 'fab-t': False, 'square': False}


@pytest.mark.parametrize('num_real, names', [
    (3, ('fab-t',)), *(pytest.param(n, ALL, marks=pytest.mark.long) for n in (2, 3, 4))])
def test_logit_of_minus_infinity_removes_a_class(num_real, names):
  # By definition, a model of 5 classes whose last logits are -inf equals the model of the first classes.
  logits_fn, x, _ = network()
  few = lambda x: logits_fn(x)[:, :num_real]
  masked = lambda x: logits_fn(x).at[:, num_real:].set(-jnp.inf)
  y = jnp.argmax(few(x), -1)
  found, expected = (run(f, x, y, epsilon=.05, names=names, cascade=False) for f in (masked, few))
  assert found.clean.all() and 0 < found.robust.sum() < len(x) and found.warnings == expected.warnings
  for name in names:
    np.testing.assert_array_equal(found.components[name], expected.components[name], name)
  pgd = attacks.pgd(masked, x, y, KEY, epsilon=1e-6, step_size=1e-6, num_steps=2)
  assert not pgd.success.any()
  # Logits that are all -inf are invalid, and so is +inf.
  for broken in (jnp.full((1, 3), -jnp.inf), jnp.array([[jnp.inf, 0., 0.]])):
    assert not _stepper.is_correct(broken, jnp.array([0]))[0]


@pytest.mark.parametrize('names', [
    ('apgd-ce',), pytest.param(('fab-t', 'square'), marks=pytest.mark.long)])
def test_bfloat16_logits_are_compared_in_float32(names):
  logits_fn, x, y = network(n=60)
  rounded = lambda x: 8 * logits_fn(x).astype(jnp.bfloat16)
  single = lambda x: rounded(x).astype(jnp.float32)
  y = jnp.argmax(rounded(x), -1)
  found, expected = (run(f, x, y, epsilon=.04, names=names) for f in (rounded, single))
  np.testing.assert_array_equal(found.x, expected.x)
  assert 0 < found.robust.sum() < len(x)


def test_misclassified_clean_inputs_are_not_attacked():
  logits_fn, x, y = network()
  result = run(logits_fn, x, (y + 1) % 5, names=None)
  assert not result.clean.any() and not result.robust.any()
  np.testing.assert_array_equal(result.x, x)

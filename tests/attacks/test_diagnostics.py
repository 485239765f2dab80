"""AutoAttack doubts itself: what is odd about a model is said, and odd inputs are survived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _diagnostics, _stepper
from tests.fixtures import small_models

KEY, QUICK, network = small_models.KEY, small_models.QUICK, small_models.network


def run(logits_fn, x, y, *, epsilon=.1, names=('apgd-ce', 'square'), **options):
  options = QUICK | options
  return attacks.autoattack(logits_fn, x, y, KEY, epsilon=epsilon, attacks=names, **options)


@pytest.mark.parametrize('norm, num_classes', [
    ('linf', 2), *(pytest.param(norm, n, marks=pytest.mark.long)
                   for norm in ('linf', 'l2', 'l1') for n in (2, 3, 4, 8) if (norm, n) != ('linf', 2))])
def test_few_classes(norm, num_classes):
  logits_fn, x, y = network(num_classes)
  names = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
  # In L∞ a radius at which random starts take nothing, of 8 classes less than the gradients do, so that
  # an attack whose loss has no slope for so few classes would stand out.
  epsilon = {'linf': .06, 'l2': .15, 'l1': .4}[norm]
  result = run(logits_fn, x, y, names=names, norm=norm, epsilon=epsilon, cascade=False)
  assert list(result.components) == list(names)
  took = {name: int((result.clean & ~stands).sum()) for name, stands in result.components.items()}
  assert 0 < took['square'] <= max(took.values()) < len(x)
  assert min(took[name] for name in names[:-1]) >= max(took.values()) - 1, took
  assert any(f'{num_classes} classes' in warning for warning in result.warnings) == (num_classes < 4)
  assert np.isfinite(result.x).all()


def test_what_few_classes_maximise():
  # By hand. Of 2 classes DLR is the margin, of 3 it is -(z_y - rival) / (3 - 1).
  dlr, targeted_dlr = attacks.losses.dlr, attacks.losses.targeted_dlr
  two, three = jnp.array([[3., 1.], [1., 3.]]), jnp.array([[3., 1., 2.]] * 3)
  zeros, places = jnp.zeros(2, int), jnp.arange(3)
  np.testing.assert_allclose(dlr(two, zeros), [-2, 2])
  np.testing.assert_allclose(dlr(three, places), [-.5, 1, .5])
  # Below 4 classes the targeted one is z_t - z_y, so its slope is 1 at t and -1 at y.
  np.testing.assert_allclose(targeted_dlr(two, zeros, zeros + 1), [-2, 2])
  np.testing.assert_allclose(targeted_dlr(three, places, jnp.array([1, 2, 0])), [-2, 1, 1])
  slope = lambda logits, *classes: jax.grad(lambda z: targeted_dlr(z, *classes).sum())(logits)
  np.testing.assert_array_equal(slope(two, zeros, zeros + 1), [[-1, 1], [-1, 1]])
  np.testing.assert_array_equal(
      slope(three, places, jnp.array([1, 2, 0])), [[-1, 1, 0], [0, -1, 1], [1, 0, -1]])
  np.testing.assert_array_equal(
      jax.grad(lambda z: dlr(z, zeros).sum())(two), [[-1, 1], [-1, 1]])


@pytest.mark.parametrize('shape', [(12,), (4, 3), (6, 2, 1)])
def test_one_example_of_any_shape_falls_to_each_attack_alone(shape):
  logits_fn, x, y = network(shape=shape, n=1)
  # Twice as far as the nearest misclassified point that FAB knows of, at .123; APGD's start, the
  # first point that it counts, is not yet one.
  assert attacks.apgd(logits_fn, x, y, KEY, epsilon=.25, num_steps=1).kappa >= 1
  result = run(logits_fn, x, y, epsilon=.25, names=None, cascade=False, num_queries=200)
  assert result.clean[0]
  assert {name: bool(stands[0]) for name, stands in result.components.items()} == {
      'apgd-ce': False, 'apgd-t': False, 'fab-t': False, 'square': False}


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_epsilon_zero_leaves_everything_as_it_is(norm):
  logits_fn, x, y = network()
  result = run(logits_fn, x, y, epsilon=0., norm=norm, names=('apgd-ce', 'fab-t', 'square'),
               batch_size=5)  # as in test_autoattack.py, so that it is compiled already
  assert result.robust.all() and not any('rose' in line for line in result.warnings)
  np.testing.assert_array_equal(result.x, x)


@pytest.mark.parametrize('real', [3, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 4))])
def test_a_logit_of_minus_infinity_says_that_a_class_is_none(real):
  # By definition the model of 5 classes of which the last are none is that of the first ones.
  logits_fn, x, _ = network()
  few = lambda x: logits_fn(x)[:, :real]
  masked = lambda x: logits_fn(x).at[:, real:].set(-jnp.inf)
  y = jnp.argmax(few(x), -1)
  names = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
  ours, theirs = (run(f, x, y, epsilon=.05, names=names, cascade=False) for f in (masked, few))
  assert ours.clean.all() and 0 < ours.robust.sum() < len(x) and ours.warnings == theirs.warnings
  for name in names:
    np.testing.assert_array_equal(ours.components[name], theirs.components[name], name)
  pgd = attacks.pgd(masked, x, y, KEY, epsilon=1e-6, step_size=1e-6, num_steps=2)
  assert not pgd.success.any()
  # All −inf is no answer, nor is +inf.
  for broken in (jnp.full((1, 3), -jnp.inf), jnp.array([[jnp.inf, 0., 0.]])):
    assert not _stepper.is_correct(broken, jnp.array([0]))[0]


def test_logits_of_low_precision_are_compared_in_float32():
  logits_fn, x, y = network(n=60)
  rounded = lambda x: 8 * logits_fn(x).astype(jnp.bfloat16)
  single = lambda x: rounded(x).astype(jnp.float32)
  y = jnp.argmax(rounded(x), -1)
  for names in (('apgd-ce',), ('fab-t', 'square')):
    ours, theirs = (run(f, x, y, epsilon=.04, names=names) for f in (rounded, single))
    np.testing.assert_array_equal(ours.x, theirs.x)
    assert 0 < ours.robust.sum() < len(x)


def test_examples_that_are_wrong_already_are_left_alone():
  logits_fn, x, y = network()
  result = run(logits_fn, x, (y + 1) % 5, names=None)
  assert not result.clean.any() and not result.robust.any()
  np.testing.assert_array_equal(result.x, x)


def test_a_model_that_returns_nan_is_right_about_nothing():
  _, x, y = network()
  result = run(lambda x: jnp.full((len(x), 5), jnp.nan), x, 0 * y, names=None)
  assert not result.clean.any()
  assert 'not finite' in result.warnings[-1]


def test_falling_to_nan_is_counted_and_said():
  logits_fn, x, y = network()
  # Broken everywhere but on the images themselves.
  broken = lambda z: jnp.where(jnp.abs(z - x[:len(z)]).sum((1, 2, 3))[:, None] > 0, jnp.nan,
                               logits_fn(z))
  result = run(broken, x, y, names=('apgd-ce',), batch_size=len(x))
  assert result.clean.all() and not result.robust.any()
  assert f'{len(x)} of {len(x)} examples fell to logits' in ' '.join(result.warnings)


def test_gradients_that_are_not_numbers_move_nothing_and_are_noticed():
  logits_fn, x, y = network()
  # sqrt has no slope at 0, and 0 · inf is not a number.
  spoilt = lambda x: logits_fn(x) + jnp.sqrt(jnp.sum(0 * x, axis=(1, 2, 3)))[:, None]
  assert np.isnan(jax.grad(lambda x: spoilt(x).sum())(x)).all()
  result = run(spoilt, x, y, names=('apgd-ce', 'apgd-t', 'fab-t'))
  assert np.isfinite(result.x).all() and result.clean.all()
  pgd = attacks.pgd(spoilt, x, y, KEY, epsilon=.1, step_size=.05, num_steps=2)
  assert np.isfinite(pgd.x).all() and np.abs(pgd.x - x).max() <= .1 + 1e-6
  for name in ('apgd-ce', 'apgd-t', 'fab-t'):
    assert f'{name}: zero gradients on 100.0 %' in ' '.join(result.warnings)


def test_outputs_that_are_probabilities_are_attacked_with_a_warning():
  logits_fn, x, y = network()
  result = run(lambda x: jax.nn.softmax(logits_fn(x)), x, y)
  assert not result.robust.all() and 'probabilities' in result.warnings[0]


def test_checks_name_what_is_wrong():
  logits_fn, x, y = network()
  check = attacks._diagnostics.check_model
  assert check(logits_fn, x, y) == ()
  assert 'probabilities' in check(lambda x: jax.nn.softmax(logits_fn(x)), x, y)[0]
  assert 'rest of the batch' in check(lambda x: logits_fn(x - x.mean(0)), x, y)[0]
  seated = lambda x: logits_fn(x) + jax.random.normal(KEY, (len(x), 5))  # the same in every call
  assert 'its place in it' in check(seated, x, y)[0]
  softmax = lambda x: jax.nn.softmax(logits_fn(x)).astype(jnp.bfloat16)
  assert 'probabilities' in check(softmax, x, y)[0]
  with pytest.raises(ValueError, match='gives a tuple'):
    check(lambda x: (logits_fn(x), {}), x, y)
  assert 'no gradient' in check(lambda x: 1e4 * logits_fn(x), x, y)[0]
  assert 'rounding' in check(lambda x: 1e-7 * logits_fn(x), x, y)[0]
  assert 'in common' in check(lambda x: logits_fn(x) + 1e7, x, y)[0]  # float32 knows it to a whole one
  draws = iter(jax.random.split(KEY, 9))
  noisy = lambda x: logits_fn(x) + jax.random.normal(next(draws), (12, 5))
  assert 'random' in check(noisy, x, y)[0]
  # Compiled, this would be drawn once; the driver must see it all the same.
  impure = lambda x: logits_fn(x) + np.random.default_rng().normal(size=5).astype(np.float32)
  assert 'the model is random' in ' '.join(run(impure, x, y, names=('square',)).warnings)


def test_a_lead_that_drowns_the_true_class_s_gradient_is_said_where_it_is_the_rule():
  # 1 - softmax is the slope at the true class, and is 0 in float32 from a lead of log(2^24) on.
  slope = lambda lead: jax.grad(lambda z: attacks.losses.cross_entropy(
      z, jnp.array([0]))[0])(jnp.array([[lead, 0.]]))[0, 0]
  assert slope(16.3) < 0 == slope(16.9)
  leads = lambda share: np.where(np.arange(100) < share, 20., 3.)[:, None] * np.array([1., 0.])
  check = lambda share: _diagnostics.check_logits(leads(share), np.zeros(100, int))
  assert 'no pull' in check(60)[0] and '60.0 %' in check(60)[0]
  assert check(30) == ()  # confident examples are ordinary


def test_few_classes_are_said_where_a_loss_is_another():
  check = attacks._diagnostics.check_classes
  assert len(check(2, ('apgd-dlr', 'apgd-t'))) == 2 and len(check(3, ('apgd-dlr', 'apgd-t'))) == 1
  assert check(4, ('apgd-dlr', 'apgd-t', 'fab-t')) == ()  # all 3 others are targets: nothing is amiss


def test_square_is_compared_with_what_ran_before_it():
  check = attacks._diagnostics.check_square
  assert '10.0 %' in check({'apgd-ce': .6, 'square': .5, 'fab-t': .5})[0]
  assert check({'square': .5, 'apgd-ce': .4}) == check({'apgd-ce': .5, 'square': .499}) == ()


def test_masked_gradients_are_noticed():
  logits_fn, x, y = network()
  hidden = lambda x: logits_fn(jnp.round(x * 8) / 8)
  result = attacks.autoattack(hidden, x, jnp.argmax(hidden(x), -1), KEY, epsilon=.15,
                              attacks=('apgd-ce', 'square'), **QUICK)
  text = ' '.join(result.warnings)
  assert 'apgd-ce: zero gradients on 100.0 % of examples' in text and 'square took' in text
  apart = attacks.autoattack(hidden, x, jnp.argmax(hidden(x), -1), KEY, epsilon=.15, cascade=False,
                             attacks=('square', 'apgd-ce'), **QUICK)
  assert 'square took' in ' '.join(apart.warnings)


def test_a_gradient_that_vanishes_only_on_the_way_is_noticed():
  # Pixels of .5 have sum 6; a start within .1 keeps it above 5.5 but for draws nobody sees, and
  # there is a slope. The first step takes the sum below 5.5, where there is none.
  x, y = jnp.full((4, 4, 3, 1), .5), jnp.zeros(4, int)
  score = lambda x: jax.nn.relu(x.sum((1, 2, 3)) - 5.5)
  logits_fn = lambda x: jnp.stack([score(x) + .5, jnp.zeros(len(x))], axis=1)
  assert (jax.grad(lambda x: score(x).sum())(x) != 0).all()
  result = run(logits_fn, x, y, names=('apgd-ce',))
  assert result.robust.all()
  assert 'apgd-ce: zero gradients on 100.0 % of examples; add apgd-t and square' in result.warnings


def test_a_loss_that_never_rises_is_noticed():
  # A model that reports its gradient with the wrong sign.
  logits_fn, x, y = network()

  @jax.custom_vjp
  def lies(x):
    return x

  lies.defvjp(lambda x: (x, None), lambda _, gradient: (-gradient,))
  result = run(lambda x: logits_fn(lies(x)), x, y, epsilon=.02, names=('apgd-ce',))
  assert 'apgd-ce: the loss never rose on' in ' '.join(result.warnings)
  honest = run(logits_fn, x, y, epsilon=.02, names=('apgd-ce',))
  assert not any('rose' in line for line in honest.warnings)
  # In L1 the search begins in the ball of 3ε, where this loss is higher than it can be within ε.
  slope = jax.random.normal(KEY, x.shape[1:])
  far = lambda x: jnp.sum(5 * jnp.abs(x - .5) + slope * x, axis=(1, 2, 3)) - 10
  result = run(lambda x: jnp.stack([0 * far(x), far(x)], 1), jnp.full_like(x, .5), 0 * y,
               epsilon=.3, norm='l1', names=('apgd-ce',), num_steps=20)
  assert result.robust.all() and not any('rose' in line for line in result.warnings)

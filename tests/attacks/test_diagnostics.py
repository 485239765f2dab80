"""Warnings about an unreliable evaluation: each problem is reported, when it is known, with useful advice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _diagnostics
from at_jax.attacks.autoattack import components
from tests.fixtures.small_models import KEY, QUICK, network


def run(logits_fn, x, y, *, epsilon=.1, names=('apgd-ce', 'square'), **options):
  options = QUICK | options
  return attacks.autoattack(logits_fn, x, y, KEY, epsilon=epsilon, attacks=names, **options)


def warnings_of(logits_fn, x, y, *, names=('square',), **options):
  return ' '.join(run(logits_fn, x, y, names=names, **dict(batch_size=4) | options).warnings)


def test_check_model_reports_each_problem():
  logits_fn, x, y = network()
  check = attacks.check_model
  assert check(logits_fn, x, y) == ()
  assert 'probabilities' in check(lambda x: jax.nn.softmax(logits_fn(x)), x, y)[0]
  assert 'rest of the batch' in check(lambda x: logits_fn(x - x.mean(0)), x, y)[0]
  positional = lambda x: logits_fn(x) + jax.random.normal(KEY, (len(x), 5))  # the same in every call
  assert 'its position in it' in check(positional, x, y)[0]
  softmax = lambda x: jax.nn.softmax(logits_fn(x)).astype(jnp.bfloat16)
  assert 'probabilities' in check(softmax, x, y)[0]
  with pytest.raises(ValueError, match='gives a tuple'):
    check(lambda x: (logits_fn(x), {}), x, y)
  assert 'no gradient' in check(lambda x: 1e4 * logits_fn(x), x, y)[0]
  assert 'rounding' in check(lambda x: 1e-7 * logits_fn(x), x, y)[0]
  assert 'common offset' in check(lambda x: logits_fn(x) + 1e7, x, y)[0]  # float32 rounds it to integers
  draws = iter(jax.random.split(KEY, 9))
  noisy = lambda x: logits_fn(x) + jax.random.normal(next(draws), (12, 5))
  assert 'random' in check(noisy, x, y)[0]
  # Compiled, the noise would be drawn once and become a constant; the driver must notice it all the same.
  impure = lambda x: logits_fn(x) + np.random.default_rng().normal(size=5).astype(np.float32)
  assert 'the model is random' in warnings_of(impure, x, y, batch_size=250)


def test_check_model_names_a_function_that_cannot_be_called():
  _, x, y = network()
  for wrong, message in ((lambda x, train: x, r"logits_fn = <lambda> cannot be called as \(x\), .*'train'"),
                         (lambda x: x @ np.ones((7, 3)), r'logits_fn = <lambda> fails on float32\[')):
    with pytest.raises(ValueError, match=message) as caught:
      attacks.check_model(wrong, x, y)
    assert '\n' not in str(caught.value)


def test_a_model_that_becomes_nan_is_random():
  logits_fn, x, _ = network()
  calls = iter(range(99))
  broken = lambda x: logits_fn(x) * jnp.where(next(calls), jnp.nan, 1.)
  # argmax of NaN is class 0, so with these labels all passes have as many correct predictions.
  y = jnp.zeros(len(x), int)
  passes = np.stack([logits_fn(x).at[:, 0].add(1e3), jnp.full((len(x), 5), jnp.nan)])
  assert _diagnostics._is_random(passes, np.asarray(y))
  assert 'random' in _diagnostics.check_determinism(broken, x, y)[0]


@pytest.mark.parametrize('margin, dtype, warned', [
    (20., np.float32, True), (20., np.float64, False), (40., np.float64, True)])
def test_saturation_depends_on_the_dtype(margin, dtype, warned):
  # 1 − e^-20 rounds to 1 in float32, whose last place is 2^-24, and not in float64, with 2^-53 = e^-36.7.
  logits = np.array([[margin, 0., 0.]] * 4, dtype)
  with jax.enable_x64(dtype == np.float64):
    lines = _diagnostics.check_logits(logits, np.zeros(4, int), dtype=dtype)
  assert any('at the true class' in line for line in lines) == warned


# Clean logits.


def test_logits_of_every_batch_are_checked():
  logits_fn, x, y = network()
  x = x.at[5].set(.25)
  broken = lambda x: jnp.where((x == .25).all((1, 2, 3))[:, None], jnp.nan, logits_fn(x))
  assert '1 of 12 clean inputs give logits that are not finite' in warnings_of(broken, x, y)


def test_nan_logits_count_as_misclassified():
  _, x, y = network()
  result = run(lambda x: jnp.full((len(x), 5), jnp.nan), x, 0 * y, names=None)
  assert not result.clean.any()
  assert 'not finite' in result.warnings[-1]


def test_probabilities_are_attacked_with_a_warning():
  logits_fn, x, y = network()
  result = run(lambda x: jax.nn.softmax(logits_fn(x)), x, y)
  assert not result.robust.all() and 'probabilities' in result.warnings[0]


def test_saturation_is_reported_if_it_is_the_rule():
  # 1 - softmax is the gradient at the true class, and is 0 in float32 from a lead of log(2^24) on.
  slope = lambda lead: jax.grad(lambda z: attacks.losses.cross_entropy(
      z, jnp.array([0]))[0])(jnp.array([[lead, 0.]]))[0, 0]
  assert slope(16.3) < 0 == slope(16.9)
  leads = lambda share: np.where(np.arange(100) < share, 20., 3.)[:, None] * np.array([1., 0.])
  check = lambda share: _diagnostics.check_logits(leads(share), np.zeros(100, int))
  assert 'no gradient at the true class' in check(60)[0] and '60.0 %' in check(60)[0]
  assert check(30) == ()  # some confident examples are normal


# Outputs of several calls.


def test_dependence_on_the_batch_is_found_at_batch_size_one():
  logits_fn, x, y = network()
  dependent = lambda x: logits_fn(x) - 50 * (x - x.mean(0)).sum((1, 2, 3))[:, None] * jnp.arange(5.)
  y = jnp.argmax(logits_fn(x), -1)
  found = warnings_of(dependent, x, y, batch_size=1)
  assert 'depends on the rest of the batch' in found and 'vmap' in found


def test_dependence_on_the_position_is_found_twice():
  logits_fn, x, y = network(n=40)
  positional = lambda x: logits_fn(x) + 3 * jax.random.normal(KEY, (len(x), 5))
  found = warnings_of(positional, x, y, batch_size=8)
  assert 'its position in it: look for BatchNorm' in found and 'are correct when evaluated again' in found


def test_compiled_model_with_stale_weights_is_reported():
  _, x, y = network()

  class Held:
    weights = jax.random.normal(KEY, (12, 5))

  # A Partial promises that its weights are its arguments, so it is not traced again.
  logits_fn = lambda x: x.reshape(len(x), -1) @ Held.weights
  partial = jax.tree_util.Partial(logits_fn)
  assert 'compiled' not in warnings_of(partial, x, y)
  Held.weights = -Held.weights
  assert 'the compiled model differs by' in warnings_of(partial, x, y)
  assert 'compiled' not in warnings_of(logits_fn, x, y)


def test_rounding_of_a_compiled_model_is_accepted():
  logits_fn, x, y = network()
  logits = np.asarray(logits_fn(x))
  assert _diagnostics.check_determinism(logits_fn, x, y, logits * (1 + 1e-5)) == ()
  assert 'by 1 %' in _diagnostics.check_determinism(logits_fn, x, y, logits * 1.01)[0]


# The problem.


def test_few_classes_are_reported_where_a_loss_changes():
  check = _diagnostics.check_classes
  assert len(check(2, ('apgd-dlr', 'apgd-t'))) == 2 and len(check(3, ('apgd-dlr', 'apgd-t'))) == 1
  assert check(4, ('apgd-dlr', 'apgd-t', 'fab-t')) == ()  # all 3 others are targets


def test_ball_that_covers_the_domain_is_reported():
  logits_fn, x, y = network()
  assert 'epsilon = 8 covers the whole input domain 0..1: give epsilon in units of x' in warnings_of(
      logits_fn, x, y, epsilon=8.)
  assert 'epsilon = 0.0001 changes next to nothing' in warnings_of(logits_fn, x, y, epsilon=1e-4)
  reach = lambda epsilon, norm: _diagnostics.check_reach(
      np.array([.1, epsilon]), jnp.ones((1, 3, 4)), (0., 1.), norm)
  # The diagonal of the domain: sqrt(12) in L2, 12 in L1.
  assert reach(3.5, 'l2') and reach(12., 'l1') and reach(3.4, 'l2') == reach(11.9, 'l1') == ()
  assert _diagnostics.check_reach(np.array([9.]), jnp.ones((1, 3)), (-np.inf, np.inf), 'linf') == ()


# Published protocols: norm, entries of an image, ε, step size, steps, and the part of ε that the steps must
# cover. Madry 2018, TRADES, Wong 2020 (fast AT, ImageNet), MI-FGSM, RobustBench (L2), LiResNet's certificates
# on ImageNet (L2), Croce and Hein 2021 and 2022 (L1).
PROTOCOLS = [
    ('linf', 784, .3, .01, 40, .5), ('linf', 3072, 8 / 255, 2 / 255, 7, .5),
    ('linf', 3072, .031, .003, 20, .5), ('linf', 3072, .031, .007, 10, .5),
    ('linf', 3072, 8 / 255, 10 / 255, 1, .5),
    ('linf', 3072, 8 / 255, .8 / 255, 10, 1), ('linf', 3072, 16 / 255, 1.6 / 255, 10, 1),
    ('linf', 150528, .5 / 255, .25 / 255, 20, .5), ('linf', 3072, .25 / 255, .25 / 255, 1, 1),
    ('l2', 3072, 128 / 255, 15 / 255, 10, .5), ('l2', 150528, 36 / 255, 9 / 255, 10, .5),
    ('l2', 150528, 3., .5, 20, .5), ('l2', 784, 1.5, .1, 40, .5), ('l1', 3072, 12., 1., 20, .5),
    ('l1', 150528, 60., 5., 50, .5), ('l1', 784, 10., 1., 20, .5)]


@pytest.mark.parametrize('norm, size, epsilon, step_size, num_steps, path', PROTOCOLS)
def test_published_radii_are_quiet_and_255ths_are_not(norm, size, epsilon, step_size, num_steps, path):
  x = np.linspace(0, 1, size, dtype=np.float32)[None]
  reach = lambda epsilon, x=x, high=1.: _diagnostics.check_reach(np.array(epsilon), x, (0., high), norm)
  steps = lambda step_size: _diagnostics.check_steps(np.array(step_size), np.array(epsilon), num_steps, path)
  assert reach(epsilon) == reach(0.) == reach(epsilon * 255, 255 * x, 255.) == ()
  # A part of the examples may have any radius; wide bounds say nothing about the scale of x.
  assert reach([1e-6, epsilon]) == reach(epsilon, high=1e6) == reach(epsilon, high=np.inf) == ()
  assert steps(step_size) == steps(0.) == ()
  assert 'step_size' in steps(step_size / 255)[0] and 'part of the way' in steps(step_size / 255)[0]
  if num_steps > 1:
    assert 'jumps across' in steps(step_size * 255)[0]
  if (norm, epsilon) != ('linf', .3) and size < 150528:  # .3 is too large, and ImageNet's images are too
    small = reach(epsilon, 255 * x, 255.)
    assert 'epsilon' in small[0] and 'next to nothing where x is 0..255' in small[0]


@pytest.mark.parametrize('step_size, epsilon, line', [
    (.1, 8., 'step_size = 0.1 takes 10 steps only a part of the way to epsilon = 8: give both in units of x, '
             'for example 2'),
    ([0., .1, .1], 8., 'step_size = 0.1 takes 10 steps only a part of the way to epsilon = 8 on 2 of 3 '
                       'examples: give both in units of x, for example 2'),
    (.1, [8., 0., 4.], 'step_size = 0.1 takes 10 steps only a part of the way to epsilon = 4..8 on 2 of 3 '
                       'examples: give both in units of x, for example 1..2'),
    ([2., 4., 3.], .1, 'step_size = 2..4 jumps across the ball of epsilon = 0.1 on 3 of 3 examples: give '
                       'both in units of x, for example 0.025')])
def test_a_line_about_steps_is_true_of_all_examples_it_counts(step_size, epsilon, line):
  check = lambda step_size: _diagnostics.check_steps(np.array(step_size), np.array(epsilon), 10, path=1.)
  assert check(step_size) == (line,)
  if np.ndim(step_size):
    assert check([*step_size[:-1], np.max(epsilon) / 4]) == ()  # the steps of one example fit


def test_a_radius_below_the_rounding_of_x_is_reported():
  # Between 512 and 1024 neighbours in float32 are 2^-14 = 6e-5 apart.
  x = np.linspace(999.999, 1000, 12, dtype=np.float32)[None]
  reach = lambda x: _diagnostics.check_reach(np.array(2e-5), x, (-np.inf, np.inf), 'linf')
  assert np.all(x + np.float32(2e-5) == x)
  assert 'lost to rounding' in reach(x)[0]
  assert reach(x - 1000) == ()


# Gradients.


def test_nan_gradients_move_nothing_and_are_reported():
  logits_fn, x, y = network()
  # sqrt has no derivative at 0, and 0 · inf is NaN.
  broken = lambda x: logits_fn(x) + jnp.sqrt(jnp.sum(0 * x, axis=(1, 2, 3)))[:, None]
  assert np.isnan(jax.grad(lambda x: broken(x).sum())(x)).all()
  result = run(broken, x, y, names=('apgd-ce', 'apgd-t', 'fab-t'))
  assert np.isfinite(result.x).all() and result.clean.all()
  pgd = attacks.pgd(broken, x, y, KEY, epsilon=.1, step_size=.05, num_steps=2)
  assert np.isfinite(pgd.x).all() and np.abs(pgd.x - x).max() <= .1 + 1e-6
  for name in ('apgd-ce', 'apgd-t', 'fab-t'):
    assert f'{name}: zero gradients on 100.0 %' in ' '.join(result.warnings)


@pytest.mark.parametrize('name', ['apgd-ce', 'fab-t'])
def test_gradient_with_one_nan_entry_is_reported(name):
  logits_fn, x, y = network()
  # sqrt has no derivative at 0, and 0 · inf is NaN: here at the first pixel.
  broken = lambda x: logits_fn(x) + jnp.sqrt(0 * x[:, 0, 0])
  gradient = jax.grad(lambda x: broken(x).sum())(x)
  assert np.isnan(gradient[:, 0, 0]).all() and np.isfinite(gradient[:, 1:]).all()
  assert f'{name}: zero gradients on 100.0 %' in warnings_of(broken, x, y, names=(name,))


def test_gradient_that_vanishes_after_the_start_is_reported():
  # Pixels of .5 have sum 6. A start within .1 keeps the sum above 5.5 (but for very unlikely draws), where
  # there is a gradient. The first step takes the sum below 5.5, where there is none.
  x, y = jnp.full((4, 4, 3, 1), .5), jnp.zeros(4, int)
  score = lambda x: jax.nn.relu(x.sum((1, 2, 3)) - 5.5)
  logits_fn = lambda x: jnp.stack([score(x) + .5, jnp.zeros(len(x))], axis=1)
  assert (jax.grad(lambda x: score(x).sum())(x) != 0).all()
  result = run(logits_fn, x, y, names=('apgd-ce',))
  assert result.robust.all()
  assert 'apgd-ce: zero gradients on 100.0 % of examples; add apgd-t and square' in result.warnings


def test_a_falling_loss_of_apgd_soft_is_not_reported():
  # Its gradient is that of a loss with a constant denominator, whose value may fall along it.
  check = lambda name: _diagnostics.check_gradients(name, 100, 0, 40, (name,))
  assert not check('apgd-soft') and 'the loss never rose on 40.0 %' in check('apgd-near')[0]


def test_loss_that_never_rises_is_reported():
  # This model returns the gradient with the wrong sign.
  logits_fn, x, y = network()

  @jax.custom_vjp
  def flip_gradient(x):
    return x

  flip_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (-gradient,))
  result = run(lambda x: logits_fn(flip_gradient(x)), x, y, epsilon=.02, names=('apgd-ce',))
  assert 'apgd-ce: the loss never rose on' in ' '.join(result.warnings)
  correct = run(logits_fn, x, y, epsilon=.02, names=('apgd-ce',))
  assert not any('rose' in line for line in correct.warnings)
  # In L1 the search begins in the ball of 3ε, where this loss is higher than anywhere within ε.
  slope = jax.random.normal(KEY, x.shape[1:])
  far = lambda x: jnp.sum(5 * jnp.abs(x - .5) + slope * x, axis=(1, 2, 3)) - 10
  result = run(lambda x: jnp.stack([0 * far(x), far(x)], 1), jnp.full_like(x, .5), 0 * y,
               epsilon=.3, norm='l1', names=('apgd-ce',), num_steps=20)
  assert result.robust.all() and not any('rose' in line for line in result.warnings)


def test_masked_gradients_are_reported():
  logits_fn, x, y = network()
  masked = lambda x: logits_fn(jnp.round(x * 8) / 8)
  result = run(masked, x, jnp.argmax(masked(x), -1), epsilon=.15)
  text = ' '.join(result.warnings)
  assert 'apgd-ce: zero gradients on 100.0 % of examples' in text and 'square fooled another' in text
  apart = run(masked, x, jnp.argmax(masked(x), -1), epsilon=.15, cascade=False, names=('square', 'apgd-ce'))
  assert 'square fooled another' in ' '.join(apart.warnings)


def test_square_is_compared_with_the_attacks_before_it():
  check = _diagnostics.check_square
  assert '10.0 %' in check({'apgd-ce': .6, 'square': .5, 'fab-t': .5})[0]
  assert check({'square': .5, 'apgd-ce': .4}) == check({'apgd-ce': .5, 'square': .499}) == ()


# The points that were found.


def test_examples_fooled_by_nan_logits_are_counted():
  logits_fn, x, y = network()
  # NaN everywhere but on the images themselves.
  broken = lambda z: jnp.where(jnp.abs(z - x[:len(z)]).sum((1, 2, 3))[:, None] > 0, jnp.nan,
                               logits_fn(z))
  result = run(broken, x, y, names=('apgd-ce',), batch_size=len(x))
  assert result.clean.all() and not result.robust.any()
  assert f'{len(x)} of {len(x)} fooled examples have logits that' in ' '.join(result.warnings)


def test_points_that_are_correct_on_reevaluation_are_counted():
  _, x, y = network()
  fooled, logits = np.arange(12) < 4, np.zeros((12, 5), np.float32)
  logits[np.arange(12), y] = 1.  # all are classified correctly
  check = _diagnostics.check_adversarial
  assert check(logits, y, fooled)[0].startswith('4 of 4 fooled examples are correct')
  logits[0, (int(y[0]) + 1) % 5] = 1 - 1e-4  # within rounding
  assert check(logits, y, fooled)[0].startswith('3 of 4')
  assert check(-logits, y, fooled) == check(logits, y, fooled, random=True) == ()


# Points at multiples of 1/4, whose classes a linear model without NaN would keep within ε = .1 in L∞.
GRID = np.array([[.25, .75], [.75, .25], [0., 1.]], np.float32)
ATTACKS = {
    'pgd': lambda *args: attacks.pgd(*args, KEY, epsilon=.1, step_size=.05, num_steps=2).success,
    'fgsm': lambda *args: attacks.fgsm(*args, epsilon=.1).success,
    'apgd': lambda *args: attacks.apgd(*args, KEY, epsilon=.1, num_steps=2).success,
    'fab': lambda *args: attacks.fab(*args, epsilon=.1, num_steps=20).success,
    'square': lambda *args: attacks.square(*args, KEY, epsilon=.1, num_queries=2).success,
    'autoattack': lambda *args: ~attacks.autoattack(
        *args, KEY, epsilon=.1, num_steps=2, num_queries=2, warn=lambda line: None).robust,
}


def nan_logits(is_kind, x):
  """The input itself, or NaN; one program for all kinds."""
  moved = (x * 4 % 1 != 0).any(1, keepdims=True)
  return jnp.where(is_kind['always'] | is_kind['once moved'] & moved, jnp.nan, x)


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('kind', ['always', 'once moved', 'never'])
def test_nan_logits_are_not_robust_whatever_the_class(name, kind):
  # argmax of NaN is 0, so the reference AutoAttack counts class 0 as robust. Here a NaN is misclassified.
  y = jnp.argmax(GRID, axis=1)
  is_kind = {each: jnp.array(each == kind) for each in ('always', 'once moved')}
  fooled = ATTACKS[name](jax.tree_util.Partial(nan_logits, is_kind), GRID, y)
  np.testing.assert_array_equal(fooled, np.full(3, kind != 'never'))
  assert 0 in y and 1 in y


# How warnings are delivered.


def test_warnings_are_issued_as_soon_as_they_are_known():
  logits_fn, x, y = network()
  masked = lambda x: jax.nn.softmax(logits_fn(jnp.round(x * 8) / 8))
  events = []
  result = run(masked, x, jnp.argmax(masked(x), -1), epsilon=.02, warn=events.append,
               progress=lambda now: events.append(now))
  issued = [event for event in events if isinstance(event, str)]
  assert tuple(issued) == result.warnings
  assert 'probabilities' in events[0]
  gradients = next(i for i, e in enumerate(events) if isinstance(e, str) and 'zero gradients' in e)
  running = [event.attack for event in events[gradients:] if not isinstance(event, str)]
  assert running and set(running) == {'square'}


def test_warnings_are_python_warnings_by_default():
  logits_fn, x, y = network()
  with pytest.warns(UserWarning, match='the outputs are probabilities') as caught:
    warnings_of(lambda x: jax.nn.softmax(logits_fn(x)), x, y)
  assert caught[0].filename == __file__


def test_resumed_evaluation_has_the_warnings_of_a_whole_one(tmp_path):
  logits_fn, x, y = network()
  masked = lambda x: logits_fn(jnp.round(x * 8) / 8)
  again = lambda: warnings_of(masked, x, jnp.argmax(masked(x), -1), epsilon=.02, names=('apgd-ce', 'square'),
                              state_path=tmp_path / 'state.npz')
  whole = again()
  assert 'apgd-ce: zero gradients' in whole and again() == whole


def test_advice_names_attacks_that_did_not_run():
  accuracy = {'apgd-ce': .9, 'apgd-t': .9, 'fab-t': .9, 'square': .5}
  assert _diagnostics.check_square(accuracy)[0].endswith('raise num_queries, add fab')
  plus = dict.fromkeys(components.VERSIONS['plus'], .9) | {'square': .5}
  assert _diagnostics.check_square(plus)[0].endswith('raise num_queries, trust square alone')
  gradients = lambda name, *names, **kind: _diagnostics.check_gradients(name, 9, 9, 0, names, **kind)[0]
  assert gradients('apgd-ce', 'apgd-ce').endswith('add apgd-t and square')
  assert gradients('apgd-ce', 'apgd-ce', 'apgd-dlr').endswith('add square')
  standard = components.VERSIONS['standard']
  assert gradients('apgd-ce', *standard).endswith('trust apgd-t and square, with more num_queries')
  for name in ('apgd-t', 'fab-t'):  # no other gradient would help
    assert gradients(name, *standard).endswith('examples; trust square, with more num_queries')
  assert gradients('apgd-dlr', 'apgd-ce', 'apgd-dlr', random=True).endswith(
      "fix the noise and add square, with version='standard'")
  advice = lambda logits, names: _diagnostics.check_logits(np.asarray(logits), np.zeros(3, int), names)[0]
  same = np.full((3, 2), .5)
  assert advice(same, ()).endswith('add square')
  assert advice(same, ('square',)).endswith('or trust square')
  saturated = [[99., 0.]] * 3
  assert 'add apgd-dlr or apgd-t' in advice(saturated, ('apgd-ce',))
  assert 'trust apgd-t, whose' in advice(saturated, ('apgd-ce', 'apgd-t'))
  draws = iter(jax.random.split(KEY, 5))
  noisy = lambda x: jax.random.normal(next(draws), (3, 2))
  assert 'apgd-ce and apgd-dlr' in _diagnostics.check_determinism(noisy, same, np.zeros(3, int))[0]

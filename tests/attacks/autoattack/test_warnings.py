"""Warnings: none is missed, each is said when it is known, and its advice is of use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _diagnostics
from at_jax.attacks.autoattack import components
from tests.fixtures import small_models

KEY, QUICK, network = small_models.KEY, small_models.QUICK, small_models.network


def doubts(logits_fn, x, y, **options):
  options = dict(epsilon=.1, attacks=('square',), batch_size=4) | QUICK | options
  return ' '.join(attacks.autoattack(logits_fn, x, y, KEY, **options).warnings)


def test_every_output_is_looked_at_and_not_those_of_the_first_batch_alone():
  logits_fn, x, y = network()
  x = x.at[5].set(.25)
  broken = lambda x: jnp.where((x == .25).all((1, 2, 3))[:, None], jnp.nan, logits_fn(x))
  assert '1 of 12 clean inputs give logits that are not finite' in doubts(broken, x, y)


def test_one_example_at_a_time_is_seen_in_company():
  logits_fn, x, y = network()
  dependent = lambda x: logits_fn(x) - 50 * (x - x.mean(0)).sum((1, 2, 3))[:, None] * jnp.arange(5.)
  y = jnp.argmax(logits_fn(x), -1)
  said = doubts(dependent, x, y, batch_size=1)
  assert 'depends on the rest of the batch' in said and 'vmap' in said


def test_a_compiled_model_that_answers_otherwise_is_noticed():
  _, x, y = network()

  class Held:  # classes are not looked into
    weights = jax.random.normal(KEY, (12, 5))

  logits_fn = lambda x: x.reshape(len(x), -1) @ Held.weights
  assert 'compiled' not in doubts(logits_fn, x, y)
  Held.weights = -Held.weights
  assert 'compiled, the model answers otherwise, by' in doubts(logits_fn, x, y)


def test_rounding_is_no_other_answer():
  logits_fn, x, y = network()
  logits = np.asarray(logits_fn(x))
  assert _diagnostics.check_determinism(logits_fn, x, y, logits * (1 + 1e-5)) == ()
  assert 'by 1 %' in _diagnostics.check_determinism(logits_fn, x, y, logits * 1.01)[0]


def test_points_that_are_no_longer_wrong_when_asked_again_are_counted():
  _, x, y = network()
  fell, logits = np.arange(12) < 4, np.zeros((12, 5), np.float32)
  logits[np.arange(12), y] = 1.  # right about all
  assert _diagnostics.check_found(logits, y, fell)[0].startswith('4 of 4 examples fell to points that')
  logits[0, (int(y[0]) + 1) % 5] = 1 - 1e-4  # within rounding
  assert _diagnostics.check_found(logits, y, fell)[0].startswith('3 of 4')
  assert _diagnostics.check_found(-logits, y, fell) == ()


def test_a_model_that_depends_on_an_example_s_place_is_told_of_twice():
  logits_fn, x, y = network(n=40)
  seated = lambda x: logits_fn(x) + 3 * jax.random.normal(KEY, (len(x), 5))
  said = doubts(seated, x, y, batch_size=8)
  assert 'its place in it: is BatchNorm' in said and 'the model, asked again, is right about' in said


def test_a_ball_that_holds_everything_is_a_matter_of_units():
  logits_fn, x, y = network()
  assert 'epsilon = 8 reaches across all of 0..1: it is in units of x' in doubts(
      logits_fn, x, y, epsilon=8.)
  reach = lambda epsilon, norm: _diagnostics.check_reach(np.array([.1, epsilon]), (3, 4), (0., 1.), norm)
  # The box's diagonal: √12 in L2, 12 in L1.
  assert reach(3.5, 'l2') and reach(12., 'l1') and reach(3.4, 'l2') == reach(11.9, 'l1') == ()
  assert _diagnostics.check_reach(np.array([9.]), (3,), (-np.inf, np.inf), 'linf') == ()


def test_what_is_known_is_said_before_the_attacks_go_on():
  logits_fn, x, y = network()
  hidden = lambda x: jax.nn.softmax(logits_fn(jnp.round(x * 8) / 8))
  events = []
  result = attacks.autoattack(
      hidden, x, jnp.argmax(hidden(x), -1), KEY, epsilon=.02, attacks=('apgd-ce', 'square'), **QUICK,
      warn=events.append, progress=lambda now: events.append(now))
  said = [event for event in events if isinstance(event, str)]
  assert tuple(said) == result.warnings
  assert 'probabilities' in events[0]
  gradients = next(i for i, e in enumerate(events) if isinstance(e, str) and 'zero gradients' in e)
  running = [event.attack for event in events[gradients:] if not isinstance(event, str)]
  assert running and set(running) == {'square'}


def test_nobody_who_listens_for_nothing_misses_them():
  logits_fn, x, y = network()
  with pytest.warns(UserWarning, match='the outputs are probabilities') as caught:
    doubts(lambda x: jax.nn.softmax(logits_fn(x)), x, y)
  assert caught[0].filename == __file__


def test_a_resumed_evaluation_has_the_warnings_of_a_whole_one(tmp_path):
  logits_fn, x, y = network()
  hidden = lambda x: logits_fn(jnp.round(x * 8) / 8)
  run = lambda: doubts(hidden, x, jnp.argmax(hidden(x), -1), epsilon=.02,
                       attacks=('apgd-ce', 'square'), state_path=tmp_path / 'state.npz')
  whole = run()
  assert 'apgd-ce: zero gradients' in whole and run() == whole


def test_advice_names_what_is_missing():
  told = {'apgd-ce': .9, 'apgd-t': .9, 'fab-t': .9, 'square': .5}
  assert _diagnostics.check_square(told)[0].endswith('raise num_queries, add fab')
  plus = dict.fromkeys(components.VERSIONS['plus'], .9) | {'square': .5}
  assert _diagnostics.check_square(plus)[0].endswith('raise num_queries, trust square alone')
  same = np.full((3, 2), .5)
  gradients = lambda name, *ran, **kind: _diagnostics.check_gradients(name, 9, 9, 0, ran, **kind)[0]
  assert gradients('apgd-ce', 'apgd-ce').endswith('add apgd-t and square')
  assert gradients('apgd-ce', 'apgd-ce', 'apgd-dlr').endswith('add square')
  standard = components.VERSIONS['standard']
  assert gradients('apgd-ce', *standard).endswith('trust apgd-t and square, with more num_queries')
  for name in ('apgd-t', 'fab-t'):  # no other gradient would help
    assert gradients(name, *standard).endswith('examples; trust square, with more num_queries')
  assert gradients('apgd-dlr', 'apgd-ce', 'apgd-dlr', random=True).endswith(
      "hold the noise still and add square, with version='standard'")
  advice = lambda logits, ran: _diagnostics.check_logits(np.asarray(logits), np.zeros(3, int), ran)[0]
  assert advice(same, ()).endswith('add square')
  assert advice(same, ('square',)).endswith('or trust square')
  far = [[99., 0.]] * 3
  assert 'add apgd-dlr or apgd-t' in advice(far, ('apgd-ce',))
  assert 'trust apgd-t, whose' in advice(far, ('apgd-ce', 'apgd-t'))
  draws = iter(jax.random.split(KEY, 5))
  noisy = lambda x: jax.random.normal(next(draws), (3, 2))
  assert 'apgd-ce and apgd-dlr' in _diagnostics.check_determinism(noisy, same, np.zeros(3, int))[0]


@pytest.mark.parametrize('name', ['apgd-ce', 'fab-t'])
def test_a_gradient_that_is_broken_in_one_entry_is_noticed(name):
  logits_fn, x, y = network()
  # sqrt has no slope at 0, and 0 · inf is not a number: that of the first pixel, here.
  spoilt = lambda x: logits_fn(x) + jnp.sqrt(0 * x[:, 0, 0])
  gradient = jax.grad(lambda x: spoilt(x).sum())(x)
  assert np.isnan(gradient[:, 0, 0]).all() and np.isfinite(gradient[:, 1:]).all()
  assert f'{name}: zero gradients on 100.0 %' in doubts(spoilt, x, y, attacks=(name,))

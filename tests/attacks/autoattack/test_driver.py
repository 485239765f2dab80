"""The driver: independence, resume, odd inputs and odd models."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import _loops, _stepper, losses
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.autoattack import batching, state_file
from tests.fixtures.small_models import KEY, QUICK, model, network

RECORD = state_file.new_record(np.ones(3, bool), np.zeros((3, 2)), np.zeros((3, 2)), 1, 1)


@pytest.mark.parametrize('norm, epsilon', [('linf', .06), ('l2', .15), ('l1', .4)])
def test_what_falls_is_misclassified_in_the_ball_and_in_bounds(norm, epsilon):
  logits_fn, x, y = network()
  result = attacks.autoattack(logits_fn, x, y, KEY, epsilon=epsilon, norm=norm, batch_size=5,
                              attacks=('apgd-ce', 'fab-t', 'square'), **QUICK)
  assert 0 < result.robust.sum() < len(x)
  right = np.asarray(jnp.argmax(logits_fn(result.x), axis=-1) == y)
  np.testing.assert_array_equal(right, result.robust)
  delta = np.abs(result.x - x).reshape(len(x), -1).astype(np.float64)
  size = {'linf': delta.max(1), 'l2': np.sqrt((delta ** 2).sum(1)), 'l1': delta.sum(1)}[norm]
  assert size.max() <= epsilon * (1 + 1e-5)
  assert result.x.min() >= 0 and result.x.max() <= 1
  np.testing.assert_array_equal(result.x[result.robust], x[result.robust])


@pytest.mark.parametrize('names', [
    ('apgd-ce', 'square'), pytest.param(None, marks=pytest.mark.long)])
def test_batch_size_order_and_share_change_no_verdict(names):
  with jax.enable_x64(True):
    logits_fn, x, y = network(n=20)
    x = x.astype(jnp.float64)
    run = lambda order, size: attacks.autoattack(
        logits_fn, x[order], y[order], KEY, epsilon=.05, batch_size=size, index=order,
        attacks=names, **QUICK)
    # The quick one compiles for one size, as test_devices.py compares two.
    whole = run(np.arange(20), 20 if names is None else 7)
    assert 0 < whole.robust.sum() < 20
    for size in (1, 7) if names is None else (7,):
      # In another order, and without some: the share of one process of several.
      order = np.random.RandomState(size).permutation(20)[:14]
      part = run(order, size)
      np.testing.assert_array_equal(part.robust, whole.robust[order])
      for name, verdict in part.components.items():
        np.testing.assert_array_equal(verdict, whole.components[name][order])


@pytest.mark.parametrize('attack', [apgd_stepper(norm='linf'), apgd_stepper(norm='l1')])
def test_starts_are_drawn_alike_in_any_company(attack):
  _, x, y = network()
  begin = lambda rows: _stepper.begin(_stepper.make_problem(
      x[rows], y[rows], KEY, epsilon=.1, index=rows), stepper=attack).x
  together, order = begin(jnp.arange(12)), jnp.array([5, 2, 11])
  np.testing.assert_array_equal(begin(order), together[order])


class Killed(Exception):
  """Ends an evaluation at a moment of the test's choosing."""


def test_an_evaluation_killed_again_and_again_resumes_to_the_same_verdicts(tmp_path):
  logits_fn, x, y = network(n=20)
  run = lambda **options: attacks.autoattack(
      logits_fn, x, y, KEY, epsilon=.05, batch_size=5, attacks=('apgd-ce', 'fab-t', 'square'),
      **QUICK, **options)
  whole = run()
  kills = 0
  while True:
    calls = 0

    def kill(progress):
      nonlocal calls
      del progress
      calls += 1
      if calls == 11:
        raise Killed

    try:
      result = run(state_path=tmp_path / 'state.npz', save_every=0., progress=kill)
      break
    except Killed:
      kills += 1
  assert kills >= 5
  np.testing.assert_array_equal(result.robust, whole.robust)
  np.testing.assert_array_equal(result.x, whole.x)
  for name, verdict in result.components.items():
    np.testing.assert_array_equal(verdict, whole.components[name])
  same = dict(epsilon=.05, batch_size=5, attacks=('apgd-ce', 'fab-t', 'square'), **QUICK)
  for other, named in ((dict(epsilon=.06), 'epsilon'), (dict(search_fn=logits_fn), 'search_fn'),
                       (dict(batch_size=6, num_steps=9), 'batch_size, num_steps')):
    with pytest.raises(ValueError, match=f'another evaluation .different {named}.: remove it'):
      attacks.autoattack(logits_fn, x, y, KEY, state_path=tmp_path / 'state.npz', **same | other)


def test_a_state_is_that_of_one_model(tmp_path):
  # Two models that are right about the same examples, and of two classes, so with the same targets.
  x, y = jnp.array([[.6, .4], [.3, .7], [.8, .1]]), jnp.array([0, 1, 0])

  def run(scale, shift=0.):
    return attacks.autoattack(
        lambda x: x * scale + shift, x, y, KEY, epsilon=.15, attacks=('apgd-ce',),
        state_path=tmp_path / 'state.npz', **QUICK)

  robust = run(jnp.array([1., 1.])).robust
  np.testing.assert_array_equal(robust, [False, True, True])  # half the lead is .1, .2, .35
  with pytest.raises(state_file.StateMismatch, match='of another model: remove it'):
    run(jnp.array([1., 1.2]))
  # Rounding, and what every logit has in common, make no other model of it.
  np.testing.assert_array_equal(run(jnp.array([1., 1.001]), 5.).robust, robust)


def test_a_state_is_that_of_its_weights(tmp_path):
  x, y = jnp.array([[.6, .4], [.3, .7], [.8, .1]]), jnp.array([0, 1, 0])
  run = lambda scale: attacks.autoattack(
      jax.tree_util.Partial(lambda scale, x: x * scale, scale), x, y, KEY, epsilon=.15,
      attacks=('apgd-ce',), state_path=tmp_path / 'state.npz', **QUICK)
  run(jnp.array([1., 1.]))
  run(jnp.array([1., 1.]))
  with pytest.raises(state_file.StateMismatch, match='another evaluation .different weights.: remove it'):
    run(jnp.array([1., 1.001]))


def test_a_masked_model_s_state_is_that_of_one_model_too(tmp_path):
  x = jnp.array([[.6, .4, 0.], [.8, .1, .2]])
  run = lambda scale: attacks.autoattack(
      lambda x: (x * scale).at[:, 2].set(-jnp.inf), x, jnp.zeros(2, int), KEY, epsilon=.15,
      attacks=('apgd-ce',), state_path=tmp_path / 'state.npz', **QUICK)
  run(1.)
  with pytest.raises(state_file.StateMismatch, match='of another model: remove it'):
    run(.05)


def test_a_state_of_an_older_layout_is_refused(tmp_path):
  state_file.save(tmp_path / 'state.npz', {'mark': np.array('1f')})
  with pytest.raises(state_file.StateMismatch, match='another version of the attack'):
    state_file.read(tmp_path / 'state.npz', {}, RECORD, None, ())


def test_a_state_goes_on_to_the_targets_it_began_with(tmp_path, monkeypatch):
  # Elsewhere two classes that are as likely may be rounded into the other order.
  x, seen = jnp.full((2, 3), .5), []
  drain = batching.run_batched
  monkeypatch.setattr(batching, "run_batched", lambda search, verify, work, *rest, **options: (
      seen.append(np.asarray(work.targets)), drain(search, verify, work, *rest, **options))[1])

  def kill(progress):
    raise Killed

  def run(lead, progress):
    return attacks.autoattack(
        lambda x: x + jnp.array([.2, 0., lead]), x, jnp.zeros(2, int), KEY, epsilon=.05,
        attacks=('apgd-t', 'fab-t'), state_path=tmp_path / 'state.npz', save_every=0.,
        progress=progress, **QUICK)

  with pytest.raises(Killed):
    run(1e-6, kill)
  assert run(-1e-6, None).robust.all()
  assert len(seen) == 3
  for targets in seen:
    np.testing.assert_array_equal(targets, [[2, 1], [2, 1]])


def test_a_damaged_file_is_not_read(tmp_path):
  state_file.save(tmp_path / 'state.npz', {'x': np.arange(1000)})
  content = bytearray((tmp_path / 'state.npz').read_bytes())
  content[2000] ^= 1
  short = content[:200]
  (tmp_path / 'state.npz').write_bytes(content)
  with pytest.raises(zipfile.BadZipFile, match='state.npz is damaged: .*CRC'):
    state_file.load(tmp_path / 'state.npz')
  for content in (b'garbage' * 9, b'', short):
    (tmp_path / 'state.npz').write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match='state.npz is damaged'):
      state_file.load(tmp_path / 'state.npz')
  state_file.save(tmp_path / 'state.npz', {'fooled': np.arange(3)})
  with pytest.raises(zipfile.BadZipFile, match="damaged: 'fingerprint' is missing"):
    state_file.read(tmp_path / 'state.npz', {}, RECORD, None, ())


def test_search_low_verify_high_counts_what_is_confirmed():
  logits_fn, x, y = network()
  # A search model that is wrong everywhere finds nothing that the other confirms at radius 0.
  fooled = lambda x: -logits_fn(x)
  result = attacks.autoattack(
      logits_fn, x, y, KEY, epsilon=0., search_fn=fooled, attacks=('apgd-ce', 'fab-t'), **QUICK)
  assert result.robust.all()
  # One in bfloat16, weights and all, is right about nearly all, and what it finds is.
  in_bfloat16, _ = model(5, (4, 3, 1), jnp.bfloat16)
  lower = lambda x: in_bfloat16(x.astype(jnp.bfloat16)).astype(jnp.float32)
  assert in_bfloat16(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  run = lambda **options: attacks.autoattack(
      logits_fn, x, y, KEY, epsilon=.05, attacks=('apgd-ce',), **QUICK, **options).robust
  robust = run(search_fn=lower)
  assert 0 < robust.sum() < len(x) and (robust != run()).sum() <= 1


def test_square_climbs_on_where_a_find_is_not_confirmed():
  # A search model that is always wrong, but whose margin is the other's and 50, so that both think
  # the same proposals better: the search must take the same path to the same verdicts.
  logits_fn, x, y = network(2, n=60)
  x, calls = x[y == 0], []
  run = lambda **options: attacks.autoattack(
      logits_fn, x, jnp.zeros(len(x), int), KEY, epsilon=.08, attacks=('square',), num_queries=100,
      progress=calls.append, **options).robust
  robust = run(search_fn=lambda x: logits_fn(x) + jnp.array([0., 50.]))
  assert len(calls) < 40  # of 101 queries, 6 calls if none were rejected
  assert 0 < robust.sum() < len(x)
  np.testing.assert_array_equal(robust, run())


def test_a_random_model_falls_to_an_attack_and_not_to_one_unlucky_pass(monkeypatch):
  monkeypatch.setattr(_loops, 'writes_out', lambda: False)  # 20 passes a gradient compile slowly
  # It errs on a pass in twenty whatever it sees: .95 are right at first, .95 of those at the end.
  def flaky(x, key):
    logits = jnp.where(jax.random.bernoulli(key, .05), jnp.array([0., 1.]), jnp.array([1., 0.]))
    return logits + 0 * x.sum(axis=1, keepdims=True)

  def run(order, names=('apgd-ce',)):
    return attacks.autoattack(
        flaky, jnp.full((200, 2), .5), jnp.zeros(200, int), KEY, epsilon=0., version='rand',
        attacks=names, num_steps=10, batch_size=50, index=order)

  order = np.random.RandomState(0).permutation(200)
  whole, part = run(np.arange(200)), run(order)
  assert .9 < whole.clean.mean() < 1 and .8 < whole.robust.mean() < whole.clean.mean()
  # What it draws hangs on the example's index, on the clean input too.
  np.testing.assert_array_equal(part.clean, whole.clean[order])
  np.testing.assert_array_equal(part.robust, whole.robust[order])
  assert 'the outputs are probabilities' in ' '.join(whole.warnings)
  # What falls by chance to one attack is not what falls to another: of 200 about 9.5 fall to each,
  # and to both of those that are attacked by both .5.
  other = run(np.arange(200), ('apgd-dlr',))
  fell = [found.clean & ~found.robust for found in (whole, other)]
  assert min(map(np.sum, fell)) >= 4 and (fell[0] & fell[1]).sum() <= 3


def test_odd_requests_are_refused_in_one_line():
  logits_fn, x, y = network()
  for options, match in (
      (dict(norm='l0'), 'linf, l2, l1'), (dict(version='fast'), 'standard, plus, rand'),
      (dict(attacks=('apgd',)), 'apgd-ce'), (dict(attacks=('fab', 'fab')), 'each once'),
      (dict(batch_size=0), 'above 0'), (dict(x=3 * x), 'normalise inside'),
      (dict(bounds=(.5, 1.)), 'beyond 0.5..1'), (dict(x=x[..., None]), 'leave it out'),
      (dict(norm='l1', num_steps=1), 'at least 2'),
      (dict(version='rand', search_fn=logits_fn), 'leave it out'),
      (dict(version='rand', attacks=('apgd-t', 'square', 'fab')), 'square, fab needs? a model whose'),
      (dict(version='rand'), 'cannot be called as .x, key., too many positional arguments')):
    options = dict(x=x) | options
    with pytest.raises(ValueError, match=match):
      attacks.autoattack(logits_fn, y=y, key=KEY, epsilon=.1, **options)
  with pytest.raises(ValueError, match='no examples'):
    attacks.autoattack(logits_fn, x[:0], y[:0], KEY, epsilon=.1)


@pytest.mark.parametrize('shape', [(12,), (7, 5), (3, 8, 2)])
def test_square_in_l2_keeps_to_the_sphere_and_gets_further_with_more_queries(shape):
  logits_fn, x, y = network(shape=shape)
  x = .25 + x / 2  # so that the bounds take nothing off
  y = jnp.argmax(logits_fn(x), axis=-1)
  run = lambda n: attacks.square(
      logits_fn, x, y, KEY, epsilon=.2, norm='l2', num_queries=n, bounds=(-9., 9.))
  many = run(60)
  size = jnp.linalg.norm((many.x - x).reshape(len(x), -1), axis=1)
  np.testing.assert_allclose(size, .2, rtol=1e-4)
  if len(shape) == 2:  # no matter the shape: another number of queries compiles anew
    few = run(1)
    assert many.loss.mean() > few.loss.mean() and (many.loss >= few.loss - 1e-6).all()


def test_losses_with_a_number_are_one_object_and_do_not_underflow():
  assert losses.scaled(20.) is losses.scaled(20.)
  assert losses.dummy_margin(.5) is losses.dummy_margin(.5)
  confident, y = jnp.array([[300., 0., 1.]]), jnp.array([0])
  slope = lambda loss: np.abs(jax.grad(lambda z: loss(z, y)[0])(confident)).max()
  assert slope(losses.masking_scaled(1.)) == 0
  assert slope(losses.scaled(1.)) > .5
  np.testing.assert_allclose(losses.scaled(1e4)(confident, y), losses.margin(confident, y))


def test_scaled_s_gradient_is_cross_entropy_s_direction():
  # (1 - p_y) / T times the bracket's gradient, times T for the division by the scale.
  with jax.enable_x64(True):
    logits, y = jnp.array([[1., .3, -.5, .2]]), jnp.array([0])
    for scale in (.2, 1., 5.):
      plain = jax.grad(lambda z: losses.cross_entropy(scale * z, y)[0])(logits)
      ours = jax.grad(lambda z: losses.scaled(scale)(z, y)[0])(logits)
      wrong = 1 - jax.nn.softmax(scale * logits)[0, 0]
      np.testing.assert_allclose(plain, scale * wrong * ours, rtol=1e-10)

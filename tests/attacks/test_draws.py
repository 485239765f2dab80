"""What is drawn: random starts and Square's squares, beside the reference and by their properties.

Where numbers of the authors' implementation are expected, what it drew (make_reference.py notes it)
is put in the place of jax.random's draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _patches, _stepper
from at_jax.attacks.apgd import stepper as apgd_stepper
from at_jax.attacks.fab import stepper as fab_stepper
from at_jax.attacks.square import _propose, _start, sides
from tests.fixtures import reference_numbers

KEY, NUMBERS = jax.random.key(0), reference_numbers.NUMBERS
STARTS = {
    'apgd Linf': (apgd_stepper(norm='linf'), .3),
    'apgd L2': (apgd_stepper(norm='l2'), .9),
    'apgd L1': (apgd_stepper(norm='l1'), 2.),
    'apgd L1 large': (apgd_stepper(norm='l1', large_start=True), 2.),
    'fab Linf': (fab_stepper(norm='linf', random_start=True), .3),
    'fab L2': (fab_stepper(norm='l2', random_start=True), .9),
    'fab L1': (fab_stepper(norm='l1', random_start=True), 2.),
}


def draw_instead(monkeypatch, **draws):
  """Makes jax.random draw these; uniform numbers are given in [0, 1)."""
  def uniform(key, shape=(), dtype=float, minval=0., maxval=1.):
    del key, dtype
    return minval + (maxval - minval) * jnp.asarray(draws['uniform']).reshape(shape)

  monkeypatch.setattr(jax.random, 'uniform', uniform)
  for name in ('normal', 'rademacher'):
    monkeypatch.setattr(jax.random, name, lambda key, shape, dtype, name=name: jnp.asarray(
        draws[name], dtype).reshape(shape))


@pytest.mark.parametrize('name', STARTS)
def test_random_starts_equal_the_reference(name, monkeypatch):
  attack, epsilon = STARTS[name]
  numbers = NUMBERS['starts']
  with jax.enable_x64(True):
    for i, x in enumerate(jnp.array(numbers['x'])):
      draw_instead(monkeypatch, uniform=numbers['uniform'][i], normal=numbers['normal'][i])
      problem = _stepper.make_problem(x[None], jnp.zeros(1, int), KEY, epsilon=epsilon)
      # Nine digits are kept in the file, and 1 divided by the smallest number drawn is below 100.
      np.testing.assert_allclose(attack.init(problem).x[0], numbers[name][i], rtol=0, atol=1e-7)


@pytest.mark.parametrize('name', STARTS)
def test_random_starts_have_the_right_radius_and_mean(name):
  attack, epsilon = STARTS[name]
  n, d = 400, 6
  problem = _stepper.make_problem(
      jnp.full((n, d), .5), jnp.zeros(n, int), KEY, epsilon=epsilon, bounds=(-99., 99.))
  delta = np.asarray(attack.init(problem).x, np.float64) - .5
  order = {'Linf': np.inf, 'L2': 2, 'L1': 1}[name.split()[1]]
  length = np.linalg.norm(delta, order, axis=1)
  if 'fab' in name:  # half way
    np.testing.assert_allclose(length, epsilon / 2, rtol=1e-5)
  elif 'L1' in name:  # a normal draw of length 4.8 on average, if that is outside the ball
    radius = 3 * epsilon if 'large' in name else epsilon
    assert length.max() <= radius * (1 + 1e-5)
    share = np.mean(length > .999 * radius)
    assert .05 < share < .5 if 'large' in name else share > .95
  else:  # on the sphere, to which it is stretched
    np.testing.assert_allclose(length, epsilon, rtol=1e-5)
  # Every example has its own (in L1 some share a corner), and each entry's mean is 0 within 5 of its
  # standard deviations.
  assert len(np.unique(delta, axis=0)) > .95 * n
  assert (np.abs(delta.mean(axis=0)) < 5 * delta.std(axis=0) / n ** .5).all()
  if 'Linf' in name:  # the entry that is stretched to the boundary may be any
    assert len(set(np.abs(delta).argmax(axis=1))) == d
    inside = np.sort(np.abs(delta), axis=1)[:, :-1].ravel() / length.max()
    # Divided by the largest, the other d - 1 are again uniform: below 1/2 half of them, ± 5 %.
    assert abs(np.mean(inside < .5) - .5) < .05


def test_square_proposals_in_linf_equal_the_reference(monkeypatch):
  numbers, epsilon = NUMBERS['square linf'], .1
  with jax.enable_x64(True):
    x = jnp.array(numbers['x'])
    table = sides(len(numbers['draws']) - 1, .8, x.shape[0] * x.shape[1])

    example = (0., 1.), x, KEY, jnp.float64(epsilon)
    # The reference has channels first.
    stripes = np.array(numbers['draws'][0]).reshape(x.shape[2], x.shape[1]).T
    draw_instead(monkeypatch, rademacher=stripes)
    point = _start(*example, shape=x.shape, norm='linf')
    np.testing.assert_allclose(point, numbers['start'], rtol=0, atol=1e-8)
    places = np.array(numbers['places']).reshape(-1, 2)
    for n, (place, signs) in enumerate(zip(places, numbers['draws'][1:], strict=True), start=1):
      where = (place + .5) / (x.shape[0] - table[n] + 1)  # the middle of the draws for this place
      draw_instead(monkeypatch, uniform=np.concatenate([where, np.where(np.array(signs) < 0, .25, .75)]))
      point = _propose(*example, point, jnp.array(n), table=table, shape=x.shape)
    np.testing.assert_allclose(point, numbers['end'], rtol=0, atol=1e-8)
  moved = np.abs(np.array(numbers['end']) - numbers['start'])
  assert (moved > 0).mean() > .3 and len(places) == 30  # else this would say little


@pytest.mark.parametrize('size', [28, 32])
@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_square_sides_equal_the_reference_at_every_query(norm, size):
  ours = sides(5000, .8, size * size)
  if norm != 'linf':
    ours = _patches.odd_sides(ours, (size, size))
  changes = NUMBERS[f'sides {norm} {size}']  # [query, side from it on]
  begins, values = zip(*changes)
  theirs = np.repeat(values, np.diff([*begins, 5000]))
  np.testing.assert_array_equal(ours[1:], theirs)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_square_does_not_enlarge_what_cancels(norm):
  # The window holds the opposite of the new patch, up to rounding, so the sum of both has no direction. XLA
  # may round it otherwise in the dividend than in its length, which gave changes of many radii.
  eta = _patches.patch(3, norm).astype(np.float32)
  delta = np.zeros((6, 6, 1), np.float32)
  delta[:3, :3, 0] = eta * (1 + 2e-7 * np.array([1, -1, 1], np.float32))
  moved = _patches.move(delta, 3, eta, np.float32(1), np.array([0, 0, 3, 3]), np.zeros(2), norm)
  assert np.abs(moved).sum() < 1e-2

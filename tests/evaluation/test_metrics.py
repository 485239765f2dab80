"""Expected robustness against its integral."""

import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.evaluation import metrics


def test_expected_robustness_of_a_linear_curve_is_its_middle():
  # Radii spread evenly over 0..R have A(ε) = 1 − ε/R, whose mean over 0..ε is 1 − ε/(2R).
  n, largest, epsilon = 1000, 2., .5
  radius = largest * (np.arange(n) + .5) / n
  assert metrics.expected_robustness_of_radii(radius, epsilon) == pytest.approx(1 - epsilon / (2 * largest))
  epsilons = np.array([0., .1, .4, .5])
  verdicts = radius > epsilons[:, None]
  assert metrics.expected_robustness(epsilons, verdicts) == pytest.approx(.875)
  curve = attacks.robust_accuracy(jnp.asarray(radius), epsilons)
  assert metrics.expected_robustness(epsilons, curve) == pytest.approx(.875)


def test_radii_give_the_limit_of_many_attacks():
  radius = np.append(np.random.default_rng(0).exponential(.03, 200), [0., np.inf])
  exact = metrics.expected_robustness_of_radii(radius, .05)
  grid = np.linspace(0, .05, 10_001)
  curve = attacks.robust_accuracy(radius, grid)
  assert metrics.expected_robustness(grid, curve) == pytest.approx(exact, abs=1e-5)
  # Every radius above ε: robust throughout. Every radius 0: misclassified clean.
  assert metrics.expected_robustness_of_radii([np.inf, 1.], .05) == 1
  assert metrics.expected_robustness_of_radii([0., 0.], .05) == 0


def test_an_example_fooled_at_one_radius_stays_fooled():
  # The second example is fooled at .1 but not at .2, where the attack was too weak.
  verdicts = np.array([[True, True], [True, False], [True, True]])
  assert metrics.expected_robustness([0, .1, .2], verdicts) == pytest.approx((1 + .5) / 4 + (.5 + .5) / 4)


@pytest.mark.parametrize('arguments, message', [
    (([.1, .2], [1., 1.]), r'epsilons = \[0.1, 0.2\]: use at least two radii, 0 and then larger ones'),
    (([0.], [1.]), r'epsilons = \[0.0\]'), (([0., .2, .1], [1., 1., 1.]), 'epsilons = '),
    (([0., np.nan], [1., 1.]), 'epsilons = '), (([0., .1], [1.]), r'robust has shape \(1,\): use one row')])
def test_radii_that_make_no_curve_are_refused(arguments, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    metrics.expected_robustness(*arguments)


@pytest.mark.parametrize('radius, epsilon, message', [
    ([.1], 0., 'epsilon = 0.0: use a finite number above 0'), ([.1], np.inf, 'epsilon = inf'),
    ([.1], [.1, .2], r'epsilon = \[0.1, 0.2\]: use a finite number above 0'),
    ([.1, -.2], .1, r'radius = \[-0.2\]: use one number of at least 0'), ([np.nan], .1, r'radius = \[nan\]'),
    ([], .1, r'radius = \[\]')])
def test_invalid_radii_are_refused(radius, epsilon, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    metrics.expected_robustness_of_radii(radius, epsilon)

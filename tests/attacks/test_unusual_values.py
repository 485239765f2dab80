"""Values that give no traceback but would give a wrong number: infinite entries, other units, lists."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks

_WEIGHTS = jnp.array([[3., -3.], [-3., 3.]])
_X, _Y = jnp.array([[.9, .1], [.2, .8], [.6, .4]]), jnp.array([0, 1, 0])
_STEPS = dict(epsilon=.01, step_size=.01, num_steps=2)


def _model(x):
  return x @ _WEIGHTS


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_an_infinite_start_is_refused(norm):
  # ∞ · ε/∞ is NaN: the point was NaN, and the example counted as fooled.
  start = _X.at[0, 0].set(jnp.inf)
  with pytest.raises(ValueError, match='start is NaN or infinite in places'):
    attacks.pgd(_model, _X, _Y, jax.random.key(0), norm=norm, start=start, **_STEPS)


def test_an_infinite_input_is_refused_without_bounds():
  x = _X.at[0, 0].set(jnp.inf)
  with pytest.raises(ValueError, match='x is infinite in 1 of 3 examples: leave these out, or mend them'):
    attacks.pgd(_model, x, _Y, jax.random.key(0), bounds=(-jnp.inf, jnp.inf), **_STEPS)


def test_radii_may_be_a_list():
  # Margins are 6 (x₀ − x₁) of the own class and FGSM lowers x₀ − x₁ by 2ε: fooled if 2ε > .8, .6, .2.
  found = attacks.fgsm(_model, _X, _Y, epsilon=[.1, .2, .5])
  np.testing.assert_array_equal(found.success, [False, False, True])
  with pytest.raises(ValueError, match='epsilon = -1: use a number of at least 0'):
    attacks.fgsm(_model, _X, _Y, epsilon=[.1, -1., .5])


def test_bounds_and_radius_of_pixels_for_inputs_in_0_1_warn():
  with pytest.warns(UserWarning, match=r'epsilon = 8 is larger than what x spans, 0.1..0.9, within bounds '
                    r'0..255: give all three in the same units'):
    attacks.fgsm(_model, _X, _Y, epsilon=8., bounds=(0, 255))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    attacks.fgsm(_model, 255 * _X, _Y, epsilon=8., bounds=(0, 255))


@pytest.mark.parametrize('y, message', [
    (np.array([[0], [1], [0]]), r'y has shape \(3, 1\): use one class per example'),
    (np.eye(2)[[0, 1, 0]], r'y has shape \(3, 2\): use one class per example'),
    (np.array([0, 1, 2]), 'y reaches from 0 to 2: classes are 0..1'),
])
def test_check_model_refuses_labels_as_attacks_do(y, message):
  with pytest.raises(ValueError, match=message):
    attacks.check_model(_model, _X, y)


def test_check_model_finds_a_model_that_rounds_its_input():
  # The derivative of rounding is 0 everywhere.
  found = attacks.check_model(lambda x: _model(jnp.round(255 * x) / 255), _X, _Y)
  assert len(found) == 1 and found[0].startswith('zero gradients on 100.0 % of inputs')
  assert attacks.check_model(_model, _X, _Y) == ()

"""Our side: the inner attacks, objectives and weights that a training step runs, on the problem.

reference.json was written by make_reference.py from the authors' code, at the commits named in it.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from at_jax import attacks
from at_jax.methods import objective as objective_lib
from tests.authors import problem
from tests.authors.problem import BETA, EPSILON, NOISE, STEP_SIZE, STEPS, X, Y

REFERENCE = pathlib.Path(__file__).with_name('reference.json')
NUMBERS = json.loads(REFERENCE.read_text())['numbers']


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """float64, and the random starts that the authors' code was given."""
  monkeypatch.setattr(attacks, 'gaussian_start', lambda x, key, index: x + .001 * NOISE)
  with jax.enable_x64(True):
    yield


def attack(kind, params, y, *, num_steps=STEPS, call=None, **options):
  """Runs one of `at_jax.methods.inner_attacks`, as a step does: in inference mode."""
  made = kind(norm='linf', epsilon=EPSILON, num_steps=num_steps, step_size=STEP_SIZE, **options)
  logits = jax.tree_util.Partial(problem.network, params)
  return made(logits, X, y, jax.random.key(0), None, **call or {})


def total(objective, x_adv, y=Y, *, x=X, kappa=None, weigh=None, weights_on='fit', beta=BETA,
          betas=None):
  """What a step minimises, put together as in `at_jax.training.step`: params -> loss, weights or None."""
  def mean_loss(params):
    forward = lambda x, stats: (problem.network(params, x, train=True), stats)
    outcome = objective(forward, {}, x, x_adv, y)
    w = weigh and weigh(objective_lib.Evidence(kappa, outcome.logits, y, None), axis_name=None)
    loss = objective_lib.mean_loss(outcome, w, weights_on=weights_on, beta=beta, betas=betas)
    return loss, w
  return mean_loss


def close(ours, theirs, tolerance):
  """Each array to a share of its largest entry."""
  theirs = np.asarray(theirs)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def close_params(ours, theirs, tolerance):
  ours = problem.digest(ours)
  assert ours.keys() == theirs.keys()
  for name in ours:
    close(ours[name], theirs[name], tolerance)


def compare(name, mean_loss, params, tolerance, value_and_grad=jax.value_and_grad):
  """Our loss, gradient and weights beside the authors' of that name."""
  (loss, weights), gradient = jax.jit(value_and_grad(mean_loss, has_aux=True))(params)
  theirs = NUMBERS[name]
  np.testing.assert_allclose(loss, theirs['loss'], rtol=tolerance)
  close_params(gradient, theirs['gradient'], tolerance)
  return gradient, weights

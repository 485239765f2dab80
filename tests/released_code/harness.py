"""Runs the inner attacks, objectives and weights of at_jax on the problem, and compares.

reference.json was written by make_reference.py from the released code, at the commits named in it.
"""

import json
import pathlib

import jax
import numpy as np

from at_jax.methods import objective as objective_lib
from tests.released_code import problem
from tests.released_code.problem import BETA, EPSILON, STEP_SIZE, STEPS, X, Y

REFERENCE = pathlib.Path(__file__).with_name('reference.json')
NUMBERS = json.loads(REFERENCE.read_text())['numbers']


def attack(kind, params, y, *, num_steps=STEPS, call=None, **options):
  """Runs an inner attack as a training step does, on the network in inference mode."""
  made = kind(norm='linf', epsilon=EPSILON, num_steps=num_steps, step_size=STEP_SIZE, **options)
  logits = jax.tree_util.Partial(problem.network, params)
  return made(logits, X, y, jax.random.key(0), None, **call or {})


def total(objective, x_adv, y=Y, *, x=X, kappa=None, weigh=None, weights_on='fit', beta=BETA,
          betas=None):
  """The loss of a training step, as in `at_jax.training.step`: params -> (loss, weights or None)."""
  def mean_loss(params):
    forward = lambda x, stats: (problem.network(params, x, train=True), stats)
    outcome = objective(forward, {}, x, x_adv, y)
    w = weigh and weigh(objective_lib.Evidence(kappa, outcome.logits, y, None), axis_name=None)
    loss = objective_lib.mean_loss(outcome, w, weights_on=weights_on, beta=beta, betas=betas)
    return loss, w
  return mean_loss


def close(ours, released, tolerance):
  """Asserts equality up to a share of the largest entry."""
  released = np.asarray(released)
  np.testing.assert_allclose(ours, released, rtol=0, atol=tolerance * np.abs(released).max())


def close_params(ours, released, tolerance):
  ours = problem.digest(ours)
  assert ours.keys() == released.keys()
  for name in ours:
    close(ours[name], released[name], tolerance)


def compare(name, mean_loss, params, tolerance, value_and_grad=jax.value_and_grad):
  """Compares loss and gradient with those recorded under a name; returns gradient and weights."""
  (loss, weights), gradient = jax.jit(value_and_grad(mean_loss, has_aux=True))(params)
  released = NUMBERS[name]
  np.testing.assert_allclose(loss, released['loss'], rtol=tolerance)
  close_params(gradient, released['gradient'], tolerance)
  return gradient, weights

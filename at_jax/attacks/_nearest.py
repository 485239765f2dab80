"""APGD towards the class whose linearised boundary is nearest: `apgd-near` of AutoAttack's 'fast'."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from at_jax.attacks import _arguments, _gradients, _stepper, losses, norms
from at_jax.attacks.apgd import State as ApgdState
from at_jax.attacks.apgd import make_rule

Array = jax.Array


class State(NamedTuple):
  """State of each example. Images are f32[B, ...], all others [B]."""
  count: Array          # gradients taken
  found: Array
  x_adv: Array
  target: Array         # the nearest class so far
  nearest: Array        # its distance
  search: ApgdState     # begins when the classes are ranked
  zero_gradient: Array  # of the search, as in `ApgdState`
  rose: Array


@_arguments.cached
def stepper(*, norm: str, num_steps: int = 100, num_targets: int = 9, large_start: bool = False
            ) -> _stepper.Stepper:
  """Ranks target classes at the input, then maximises z_t − z_y for the nearest class t, by APGD.

  The distance of a class is that of its linearised decision boundary, (z_y − z_t) / ‖∇(z_y − z_t)‖, in the
  dual norm. The `num_targets` most likely other classes are compared. Every step is one gradient: the first
  `num_targets` are taken at the input, one for each class.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    num_steps: steps of APGD.
    num_targets: classes to compare, at most C - 1.
    large_start: as in `apgd`.

  Example:
    >>> stepper(norm='linf', num_steps=100, num_targets=9).length
    110

  Reference: Melamed et al., MALT Powers Up Adversarial Attacks, 2024, section 3, ranks the classes so. It
  attacks the nearest 9 classes; here one is attacked.
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_count('num_steps', num_steps)
  rule = make_rule(norm, num_steps, large_start)

  def gap_to(logits: Array, y: Array, aim: Array) -> Array:
    target = _aimed(jax.lax.stop_gradient(logits), y, aim, num_targets)
    return losses.logit_of(logits, target) - losses.logit_of(logits, y)

  def init(problem: _stepper.Problem) -> State:
    search = rule.init(problem)
    nearest = jnp.full(len(problem.x), jnp.inf, problem.x.dtype)
    return State(search.count, search.found, problem.x, problem.y, nearest, search, search.zero_gradient,
                 search.rose)

  def step(logits_fn, problem: _stepper.Problem, state: State) -> State:
    ranking = state.count < num_targets
    x = _stepper.where(ranking, problem.x, state.search.x)
    # A class, or -1 - r for the class of rank r.
    aim = jnp.where(ranking, -1 - state.count, state.target)
    gradient, zero_gradient, gap, logits = _gradients.of_loss(
        logits_fn, problem._replace(target=aim), x, state.count, loss=gap_to, targeted=True, eot=0)
    length = jax.vmap(lambda g: norms.length(g, norms.DUAL[norm]))(gradient)
    distance = -gap / (length + 1e-12)
    aimed = _aimed(logits, problem.y, aim, num_targets)
    nearer = ranking & (aimed != problem.y) & (distance < state.nearest)
    target, nearest = _stepper.where(nearer, (aimed, distance), (state.target, state.nearest))
    # A point that the driver rejected is no longer found.
    search = rule.follow(problem, state.search._replace(found=state.found), gradient, zero_gradient, gap,
                         ~_stepper.is_correct(logits, problem.y))
    search = _stepper.where(ranking, state.search, search)
    return State(state.count + 1, search.found, search.x_adv, target, nearest, search, search.zero_gradient,
                 search.rose)

  return _stepper.Stepper(init, step, num_targets + rule.length)


def _aimed(logits: Array, y: Array, aim: Array, num_targets: int) -> Array:
  """i32[B], the class c for aim c, and the class of rank r among those other than y for aim -1 - r."""
  ranked = jax.lax.top_k(losses.without(logits, y), num_targets)[1]
  rank = jnp.maximum(-1 - aim, 0)
  return jnp.where(aim < 0, jnp.take_along_axis(ranked, rank[:, None], axis=-1)[:, 0], aim)

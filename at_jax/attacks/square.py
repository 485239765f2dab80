"""Square: random search with square-shaped changes, which needs only logits."""

import functools
import math
from typing import NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _arguments, _diagnostics, _patches, _stepper, losses, norms
from at_jax.attacks.pgd import AttackResult

Array = jax.Array
# The number of queries after which the fraction of the image that a square covers is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class State(NamedTuple):
  """State of each example. The image is f32[B, ...], all others [B]."""
  count: Array    # number of queries, including the start
  found: Array
  x_adv: Array    # the best point; the start before the first query
  margin: Array   # its margin


def square(
    logits_fn: _stepper.LogitsFn, x: Array, y: Array, key: Array, *,
    epsilon: float | Array, norm: str = 'linf', num_queries: int = 5000, p_init: float = .8,
    bounds: tuple[float, float] = (0., 1.), mask: Array | None = None, index: Array | None = None,
    channel_axis: int = -1,
) -> AttackResult:
  """Square attack: changes the best point in a random square, and keeps the change if it is better.

  In L∞ the start is x plus vertical stripes of ±ε, and a proposal adds ±2ε to each channel of a square. In
  L2 and L1 the start is a tiling, and a proposal moves norm between two windows (`_patches.move`). A
  proposal is projected onto the ball and the bounds. It is kept if the margin rises or the example is
  misclassified, which ends its search. The squares have side √(p · H · W); p decreases from `p_init` with
  the number of queries. Each example draws its own squares, at any position.

  Composes inside the caller's jit, vmap and pmap. There the queries are one compiled loop, in which the CPU
  computes convolutions of channels-first images 9 times slower. Otherwise, on the CPU, each query is a
  compiled call of its own.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C]; it needs no gradient.
    x: f32[B, H, W, C] or f32[B, H, W], images within `bounds`; f32[B, D] is an image of one row, and so is an
      image of one column, such as a series f32[B, T, 1]. If H and W differ, no window is longer than the
      shorter side in L2 and L1; in L∞ each side of a square is at most the image's own (the released code
      uses the shorter side for both).
    y: i32[B], true classes.
    key: PRNG key.
    epsilon: radius, a number or f32[B], in units of x. Traced.
    norm: 'linf', 'l2' or 'l1'. Static.
    num_queries: at least 1, in addition to the start. Static.
    p_init: fraction of the image that the first squares cover, in 0..1. Static.
    bounds: smallest and largest value of an input, numbers or arrays that broadcast with x.
    mask: array of 0 and 1 that broadcasts with x: 1 where an entry may change. None lets all change.
    index: i32[B], the number each example folds into `key`; by default its place in the batch.
    channel_axis: 1 for images f32[B, C, H, W], whose result is that of the same images with channels last;
      -1 for all others. Warns if the shape looks like the other layout. Static.

  Returns:
    An `AttackResult`. `x` is the best point, `loss` its margin (−inf instead of NaN), `kappa` the number of
    queries, including the start, that were classified correctly.

  Raises:
    ValueError: if an argument has an invalid shape, dtype or value.

  Example:
    >>> dark = lambda x: jnp.stack([-x.sum((1, 2)), x.sum((1, 2)) - 8.], axis=1)
    >>> result = square(dark, jnp.zeros((1, 4, 4)), jnp.array([0]), jax.random.key(0), epsilon=.5,
    ...                 num_queries=50)
    >>> print(result.success, result.x.max())
    [ True] 0.5

  Reference: Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
  random search, 2020, section 3. The constants, and L1, are those of the released code of AutoAttack.
  """
  attack = stepper(norm=norm, num_queries=num_queries, p_init=p_init, channel_axis=channel_axis)
  problem = _stepper.make_problem(x, y, key, epsilon=epsilon, bounds=bounds, mask=mask, index=index)
  _diagnostics.warn_of_scale(epsilon, problem.x, problem.bounds, norm)
  for line in _diagnostics.check_channels(problem.x.shape, channel_axis):
    warnings.warn(line, stacklevel=2)
  _, state = _stepper.run(logits_fn, problem, stepper=attack)
  return AttackResult(state.x_adv, state.found, state.count - state.found.astype(jnp.int32), state.margin)


@_arguments.cached
def stepper(
    *, norm: str = 'linf', num_queries: int = 5000, p_init: float = .8, channel_axis: int = -1
) -> _stepper.Stepper:
  """Square as a `Stepper`, one query per step; the same object for the same options of `square`.

  Example:
    >>> stepper(num_queries=5000).length
    5001
  """
  _arguments.check_name('norm', norm, norms.NORMS)
  _arguments.check_count('num_queries', num_queries)
  _arguments.check_number('p_init', p_init)
  if not 0 < p_init <= 1:
    raise ValueError(f'p_init = {p_init}: use a number above 0, at most 1')
  if channel_axis not in (-1, 1):
    raise ValueError(f'channel_axis = {channel_axis}: use -1 for [B, H, W, C], 1 for [B, C, H, W]')

  last = lambda x: jnp.moveaxis(x, channel_axis, -1) if np.ndim(x) else x

  def proposals(function, problem: _stepper.Problem, *rows: Array) -> Array:
    """`function(bounds, x, key, epsilon, *row)` for each example, images with channels last."""
    images = problem._replace(bounds=tuple(map(last, problem.bounds)))
    x = _stepper.each(function, images, last(problem.x), problem.key, problem.epsilon, *rows)
    return jnp.moveaxis(x, -1, channel_axis)

  def init(problem: _stepper.Problem) -> State:
    # In a step, XLA would draw the start for each query again.
    start = functools.partial(_start, shape=image_shape(problem.x.shape[1:], channel_axis), norm=norm)
    none = jnp.zeros(len(problem.x), jnp.int32)
    return State(none, none.astype(bool), proposals(start, problem),
                 jnp.full(len(problem.x), -jnp.inf, problem.x.dtype))

  def step(logits_fn, problem: _stepper.Problem, state: State) -> State:
    shape = image_shape(problem.x.shape[1:], channel_axis)
    table = sides(num_queries, p_init, shape[0] * shape[1])
    propose = _propose if norm == 'linf' else functools.partial(_propose_moved, norm=norm)
    propose = functools.partial(propose, table=table, shape=shape)
    x = proposals(propose, problem, last(state.x_adv), state.count)
    x = _stepper.where(state.count == 0, state.x_adv, x)
    logits = _stepper.logits_of(logits_fn, x)
    margin, wrong = losses.margin(logits, problem.y), ~_stepper.is_correct(logits, problem.y)
    margin = margin.astype(x.dtype)
    # A NaN compares false with everything, so no later point would be better.
    margin = jnp.where(jnp.isnan(margin), -jnp.inf, margin)
    # The best point is misclassified already only if a verifying model disagreed. Then the margin must
    # rise, because a search that accepts every misclassified point would drift.
    better = (state.count == 0) | (margin > state.margin) | (wrong & ~(state.margin > 0))
    x_adv, margin = _stepper.where(better, (x, margin), (state.x_adv, state.margin))
    return _stepper.where(state.found, state, State(state.count + 1, wrong & better, x_adv, margin))

  return _stepper.Stepper(init, step, num_queries + 1, backward=0)


def sides(num_queries: int, p_init: float, num_pixels: int) -> list[int]:
  """The side of the square at each query in pixels, before it is cut to the image.

  The first of the num_queries + 1 numbers belongs to the start and is not used.

  Example:
    >>> sorted(set(sides(5000, .8, 32 * 32)[1:]), reverse=True)
    [29, 20, 14, 10, 7, 5, 4, 3]
  """
  halved = [sum(query > after for after in _HALVINGS) for query in range(num_queries)]
  # Python rounds half to even, as the released code does.
  return [0] + [max(round(math.sqrt(p_init / 2 ** n * num_pixels)), 1) for n in halved]


def image_shape(shape: tuple[int, ...], channel_axis: int = -1) -> tuple[int, int, int]:
  """One example's (height, width, channels); one column becomes one row. ValueError for other axes."""
  if len(shape) > 3:
    raise ValueError(f'x has examples of shape {shape}: Square needs [H, W, C], [H, W] or [D]; leave it out, '
                     'attacks=(...), or merge axes of x and split them in logits_fn')
  if channel_axis == 1 and len(shape) < 3:
    raise ValueError(f'channel_axis = 1: an example has shape {shape}, not [C, H, W]; use -1')
  if len(shape) < 2:
    shape = (1, math.prod(shape))
  height, width, channels = (*shape[1:], shape[0]) if channel_axis == 1 else (*shape, 1)[:3]
  return (1, height, channels) if width == 1 else (height, width, channels)


def _start(bounds, x, key, epsilon, *, shape, norm) -> Array:
  """The first query of one example."""
  height, width, channels = shape
  key = jax.random.fold_in(key, 0)
  if norm == 'linf':
    stripes = jax.random.rademacher(key, (1, width, channels), x.dtype)
    return jnp.clip(x + epsilon * jnp.broadcast_to(stripes, shape).reshape(x.shape), *bounds)
  draws = jax.random.uniform(jax.random.split(key, 3)[2], (height, width, channels + 1), x.dtype)
  return _apply(norm, _patches.tiling(shape, draws, norm).reshape(x.shape), x, epsilon, bounds)


def _propose(bounds, x, key, epsilon, best, count, *, table, shape) -> Array:
  """The next query of one example in L∞."""
  height, width, channels = shape
  draw = jax.random.uniform(jax.random.fold_in(key, count), (2 + channels,))
  side = jnp.array(table, jnp.int32)[count]
  rows, columns = _free_lines(bounds, x, shape)
  inside = _span(draw[0], side, height, *rows)[:, None] & _span(draw[1], side, width, *columns)[None, :]
  change = jnp.where(inside[:, :, None], jnp.where(draw[2:] < .5, -2, 2) * epsilon, 0)
  moved = x + jnp.clip(best + change.astype(x.dtype).reshape(x.shape) - x, -epsilon, epsilon)
  return jnp.clip(moved, *bounds)


def _propose_moved(bounds, x, key, epsilon, best, count, *, table, shape, norm) -> Array:
  """The next query of one example in L2 or L1."""
  table = _patches.odd_sides(table, shape)
  distinct = tuple(sorted(set(table)))
  side = jnp.array(table, jnp.int32)[count]
  eta = jnp.asarray(_patches.patches(distinct, norm), x.dtype)[
      jnp.array([distinct.index(s) for s in table])[count]]
  places, draws, _ = jax.random.split(jax.random.fold_in(key, count), 3)
  within = [jnp.array(2 * pair) for pair in zip(*_free_lines(bounds, x, shape), strict=True)]
  places = jax.vmap(lambda draw, *line: _patches.first(draw, side, *line))(
      jax.random.uniform(places, (4,)), jnp.array(2 * shape[:2]), *within)
  moved = _patches.move((best - x).reshape(shape), side, eta, epsilon, places,
                       jax.random.uniform(draws, (shape[2] + 1,)), norm)
  return _apply(norm, moved.reshape(x.shape), x, epsilon, bounds)


def _apply(norm: str, change: Array, x: Array, epsilon: Array, bounds: tuple[Array, Array]) -> Array:
  """x plus a change, which in L2 gets norm ε and in L1 is projected."""
  if norm == 'l2':
    return jnp.clip(x + _patches.spread(jnp.where(norms.free(bounds), change, 0), epsilon), *bounds)
  # A little inside the ball, as in the released code, because many small entries are summed.
  return norms.clip_to_ball(change, x, epsilon * (1 - 1e-6), bounds, norm=norm)


def _span(draw: Array, side: Array, length: int, *within: Array) -> Array:
  """bool[length], true on `side` neighbours, at most all of them; a draw in [0, 1) gives the first."""
  side = jnp.minimum(side, length)
  return _patches.span(_patches.first(draw, side, length, *within), side, length)


def _free_lines(bounds, x: Array, shape: tuple[int, int, int]) -> list[tuple[Array, ...]]:
  """(first, count) of the rows, then of the columns, that contain all free entries; () if all are free."""
  free = norms.free(bounds)
  if free is True:
    return [(), ()]
  free = jnp.broadcast_to(free, x.shape).reshape(shape).any(axis=-1)
  begin_end = [(jnp.argmax(lines), jnp.argmax(lines[::-1])) for lines in (free.any(axis=1), free.any(axis=0))]
  return [(begin, n - end - begin) for (begin, end), n in zip(begin_end, shape[:2], strict=True)]

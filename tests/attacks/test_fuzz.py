"""A fuzz of the attacks: a valid call gives a valid result, any other a ValueError that names an argument.

Values vary freely over a fixed list of signatures, so that few programs are compiled.
"""

import inspect
import itertools
import re
from typing import Any, NamedTuple
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks
from at_jax.attacks import losses
from tests.fixtures import rounding

C, STEPS, QUERIES = 3, 3, 12  # as many classes as examples
SHAPES = [(3, 5), (3, 6, 1), (3, 4, 5), (3, 4, 3, 2), (3, 2, 5, 4), (3, 2, 3, 2, 2), (1, 7)]
CHANNELS_FIRST, VOLUME = SHAPES[4:6]
# 11 and 13, so that they meet all norms (3), forms of bounds (4), models (5) and shapes (7).
DTYPES = ['float64' if n % 4 == 1 else 'float32' for n in range(11)]
LABELS = [('int32', 'int64', 'uint8')[n % 3] for n in range(13)]
# 2,200 calls, of which those of AutoAttack take longest.
EXAMPLES = {'pgd': 400, 'fgsm': 400, 'apgd': 360, 'fab': 360, 'square': 360, 'autoattack': 120, 'fmn': 200}
WITHOUT_KEY = 'fgsm', 'fmn'
# Static options of each attack, and the names of further arguments that are drawn.
OPTIONS = {
    'pgd': [(dict(num_steps=STEPS), ()), (dict(num_steps=STEPS, random_start=False), ('tau', 'momentum')),
            (dict(num_steps=STEPS, restarts=2, loss=losses.margin), ()),
            (dict(num_steps=1, targeted=True), ('start',))],
    'fgsm': [(dict(), ()), (dict(targeted=True, loss=losses.dlr), ())],
    'apgd': [(dict(num_steps=STEPS), ()), (dict(num_steps=STEPS, loss=losses.margin), ('start',)),
             (dict(num_steps=STEPS, loss=losses.targeted_dlr), ('target',)),
             (dict(num_steps=5, loss=losses.dlr), ('large_start',))],
    'fab': [(dict(num_steps=STEPS), ()), (dict(num_steps=STEPS, random_start=True), ()),
            (dict(num_steps=STEPS), ('target',))],
    'square': [(dict(num_queries=QUERIES), ()), (dict(num_queries=1), ()),
               (dict(num_queries=QUERIES, p_init=.1), ())],
    'autoattack': [(dict(attacks=('apgd-ce', 'fab-t'), batch_size=2, num_steps=2), ()),
                   (dict(attacks=('square', 'apgd-t'), num_steps=2, num_queries=5, cascade=False), ())],
    'fmn': [(dict(num_steps=STEPS), ()), (dict(num_steps=5), ('step_size',))],
}


def linear(flat, w):
  return flat @ w[:, :C]


def tanh(flat, w):
  return jnp.tanh(flat @ w[:, :C]) @ w[:C, C:2 * C]


def without_a_class(flat, w):
  return linear(flat, w).at[:, 1].set(-jnp.inf)


def sometimes_nan(flat, w):
  return jnp.where(flat[:, :1] > w[0, -1], jnp.nan, linear(flat, w))


def steps(flat, w):
  """Whole numbers: with ties, without a gradient, and exact in any order of the sums."""
  return jnp.floor(4 * flat) @ jnp.round(w[:, :C])


MODELS = {model.__name__: model for model in (linear, tanh, without_a_class, sometimes_nan, steps)}


class Model:
  """A new callable for each call, with its own weights."""

  def __init__(self, kind: str, w: np.ndarray):
    self.kind, self.w = kind, w

  def __call__(self, x):
    return MODELS[self.kind](x.reshape(len(x), -1), jnp.asarray(self.w))


class Signature(NamedTuple):
  """What decides which programs are compiled."""
  attack: str
  norm: str
  options: dict[str, Any]
  drawn: tuple[str, ...]
  shape: tuple[int, ...]
  model: str
  bounds: str
  dtype: str
  labels: str


def signatures():
  """60: each attack with each of its options and each norm; the shape, the model and the rest take turns."""
  turns = [itertools.cycle(row) for row in (MODELS, ('numbers', 'rows', 'columns', 'rows'), DTYPES, LABELS)]
  shapes = itertools.cycle(SHAPES)
  for attack, rows in OPTIONS.items():
    for (options, drawn), norm in itertools.product(rows, rounding.ORDER):
      shape = next(shapes)
      if shape == VOLUME and (attack == 'square' or 'square' in options.get('attacks', ())):
        shape = next(shapes)  # refused: a mistake below
      large = dict(large_start=True) if 'large_start' in drawn and norm == 'l1' else {}
      yield Signature(attack, norm, options | large, drawn, shape, *map(next, turns))


SIGNATURES = list(signatures())


class Call(NamedTuple):
  """Arguments by name; and what they are for each entry and example."""
  arguments: dict[str, Any]
  bounds: tuple[np.ndarray, np.ndarray]  # both are x where the mask is 0
  epsilon: np.ndarray


def draw_call(draw, signature: Signature) -> Call:
  """A valid call."""
  attack, norm, options, drawn, shape, model, form, dtype, labels = signature
  pick = lambda *values: draw(st.sampled_from(values))
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  b, d, dtype = shape[0], int(np.prod(shape[1:])), np.dtype(dtype)
  width = pick(1., 1., 1., 2., 255., 1e-3, 1e4)
  low = width * pick(0., 0., -.5, -3., 1e3)
  bounds, limits, ends = _draw_bounds(pick, random, shape, (low, low + width), form, dtype)
  x = _draw_inputs(pick, random, shape, ends, dtype)
  arguments = options | dict(norm=norm, x=x)
  if np.ndim(bounds[0]) or bounds != (0., 1.):
    arguments['bounds'] = bounds
  if form == 'rows' and (np.ndim(bounds[0]) == 0 or pick(True, False)):
    size = pick(shape, shape[1:], (b,) + (1,) * (len(shape) - 1))
    mask = random.uniform(size=size) < pick(.5, .9, 0., 1.)
    limits = tuple(np.where(mask, limit, x) for limit in limits)
    arguments['mask'] = mask.astype(pick(bool, np.float32, np.int32))
  scale = width * {'linf': 1, 'l2': d ** .5, 'l1': d}[norm]
  if attack == 'fmn':
    epsilon = np.full(b, np.inf)  # it has no radius
  else:
    arguments['epsilon'], epsilon = _draw_radius(draw, pick, scale, b, dtype, infinite=attack == 'fab')
  w = random.normal(size=(d, 3 * C)) * pick(1., 1., 1e-3, 30.) / (1 if model == 'steps' else width)
  w[0, -1] = random.uniform(low, low + width)  # from where on `sometimes_nan` is NaN
  arguments['logits_fn'] = Model(model, (np.clip(w, -3, 3) if model == 'steps' else w).astype(dtype))
  arguments['y'] = random.integers(0, C, b).astype(labels)
  if attack not in WITHOUT_KEY:
    arguments['key'] = jax.random.key(pick(0, 1, 2))
    if pick(True, False):
      arguments['index'] = random.choice(pick(b, 1000, 2**31 - 1), b, replace=False)
  if 'step_size' in drawn:
    arguments['step_size'] = _draw_radius(draw, pick, width, b, dtype)[0]
    hypothesis.assume(np.all(np.asarray(arguments['step_size'])))  # 0 is refused, as test_fmn shows
  if attack == 'pgd':
    arguments['step_size'] = _draw_radius(draw, pick, min(float(epsilon.max()), scale), b, dtype)[0]
  if 'tau' in drawn:
    arguments['tau'] = pick(0, 1, 2, np.int64(9), random.integers(0, 4, b), jnp.array([1]))
    arguments['momentum'] = pick(np.float32(0), 1., .5, jnp.float32(.9), 7.)
  if 'start' in drawn:
    start = x + random.normal(size=shape) * pick(0., 1., 1e3) * width
    arguments['start'] = start.astype(pick(dtype, np.float32))
  if 'target' in drawn:
    arguments['target'] = random.integers(0, C, b)
  if attack in ('square', 'autoattack') and shape == CHANNELS_FIRST:
    arguments['channel_axis'] = 1
  return Call(arguments, limits, epsilon)


def _draw_bounds(pick, random, shape, ends, form, dtype):
  """The argument, the bounds of every entry, and the ends of the inputs, which are finite."""
  whole = lambda pair: tuple(np.broadcast_to(np.asarray(bound, dtype), shape) for bound in pair)
  low, high = ends
  if form == 'numbers' or form == 'rows' and pick(True, False):
    bounds = pick((low, high), (low, high), (low, np.inf), (-np.inf, high), (-np.inf, np.inf))
    return bounds, whole(bounds), whole(ends)
  size = shape if form == 'rows' else shape[-1:]
  first, last = np.sort(random.uniform(low, high, size=(2, *size)), axis=0).astype(dtype)
  bounds = first, np.where(random.uniform(size=size) < pick(0., .3), first, last)
  return bounds, whole(bounds), whole(bounds)


def _draw_inputs(pick, random, shape, ends, dtype):
  low, high = ends
  shares = {'anywhere': random.uniform(size=shape), 'edges': random.integers(0, 2, shape),
            'middle': np.full(shape, .5), 'levels': random.integers(0, 9, shape) / 8,
            'near': random.uniform(size=shape) * 1e-6}
  return np.clip((low + shares[pick(*shares)] * (high.astype(float) - low)).astype(dtype), low, high)


def _draw_radius(draw, pick, scale, b, dtype, infinite=False):
  """The argument, a number or one per example in several types, and the radius of every example."""
  number = st.one_of(st.sampled_from([0., .03, .3, 1., 1e-6, 1e3, 1e-40, 1e20] + [np.inf] * infinite),
                     st.floats(0, 2))
  if pick(True, False):
    types = (float, np.float64, np.float32, np.asarray, jnp.float32, lambda value: [value],
             lambda value: int(min(value, 1e9)))
    value = pick(*types)(draw(number) * scale)
  else:
    types = np.asarray, list, lambda rows: rows.astype(np.float32), jnp.asarray
    value = pick(*types)(np.array([draw(number) * scale for _ in range(b)]))
  return value, np.broadcast_to(np.asarray(value, dtype), (b,))


def run(attack: str, arguments: dict[str, Any]):
  positional = [arguments[name] for name in ('logits_fn', 'x', 'y', 'key') if name in arguments]
  named = {name: value for name, value in arguments.items() if name not in ('logits_fn', 'x', 'y', 'key')}
  return getattr(attacks, attack)(*positional, **named)


def check_result(signature: Signature, call: Call, result) -> None:
  """In the ball and the bounds, frozen entries untouched, of the documented shapes, dtypes and verdicts."""
  attack, norm, options, _, shape, _, _, dtype, _ = signature
  x, found = call.arguments['x'], np.asarray(result.x)
  assert found.shape == shape and found.dtype == dtype
  for i in np.flatnonzero(np.isfinite(call.epsilon)):
    rounding.check_ball(found[i:i + 1], x[i:i + 1], call.epsilon[i], norm)
  low, high = call.bounds
  assert (found >= low).all() and (found <= high).all()  # where these are equal, both are x
  if attack == 'autoattack':
    success, unmoved = ~result.robust, result.robust | ~result.clean
    assert (result.robust <= result.clean).all() and list(result.components) == list(options['attacks'])
    np.testing.assert_array_equal(found[unmoved], x[unmoved])
    check_verdicts(call.arguments, x, ~result.clean)
  elif attack == 'fmn':
    success = np.isfinite(result.radius)
    assert result.radius.shape == shape[:1] and result.radius.dtype == dtype and (result.radius >= 0).all()
    np.testing.assert_array_equal(found[~success], x[~success])
    distance = np.linalg.norm((found.astype(float) - x).reshape(len(x), -1), rounding.ORDER[norm], axis=1)
    np.testing.assert_allclose(result.radius[success], distance[success], rtol=1e-4)
  else:
    success = np.asarray(result.success)
    count = options.get('num_steps', options.get('num_queries', 1))
    most = {'apgd': count + (3 if options.get('large_start') else 1), 'square': count + 1, 'fab': 0}.get(
        attack, count)
    assert result.kappa.shape == result.loss.shape == shape[:1]
    assert result.kappa.dtype == np.int32 and result.kappa.min() >= 0 and result.kappa.max() <= most
    assert result.loss.dtype == dtype
  assert success.shape == shape[:1] and success.dtype == bool
  check_verdicts(call.arguments, found, success)


def check_verdicts(arguments: dict[str, Any], x: np.ndarray, success: np.ndarray) -> None:
  """Success is the model's own verdict: NaN is misclassified, and rounding may decide between near logits."""
  model, y, rows = arguments['logits_fn'], np.asarray(arguments['y'], int), np.arange(len(x))
  logits = np.asarray(model(jnp.asarray(x)), np.float64)
  hit = (logits.argmax(axis=1) == y) & np.isfinite(logits.max(axis=1))
  others = np.where(np.arange(C) == y[:, None], -np.inf, logits).max(axis=1)
  size = 1 + np.abs(x.reshape(len(x), -1).astype(float)) @ np.abs(model.w.astype(float)).max(axis=1)
  with np.errstate(invalid='ignore'):
    near = np.abs(logits[rows, y] - others) <= 100 * np.finfo(x.dtype).eps * size
  clear = ~near | (model.kind == 'steps')
  np.testing.assert_array_equal(success[clear], (hit if arguments.get('targeted') else ~hit)[clear])


def check_order(signature: Signature, call: Call, result, order: np.ndarray) -> None:
  """The same result for each example at another place in the batch, with its own arguments."""
  shape, arguments = signature.shape, dict(call.arguments)
  index = arguments.get('index', np.arange(shape[0]))
  moved = lambda value, ndim: value[order] if np.ndim(value) == ndim and len(value) == shape[0] else value
  arguments |= {name: moved(np.asarray(arguments[name]), 1) for name in
                ('y', 'epsilon', 'step_size', 'tau', 'target') if name in arguments}
  arguments |= {name: moved(arguments[name], len(shape)) for name in ('x', 'mask', 'start')
                if name in arguments}
  if 'bounds' in arguments:
    arguments['bounds'] = tuple(moved(bound, len(shape)) for bound in arguments['bounds'])
  if signature.attack not in WITHOUT_KEY:
    arguments['index'] = index[order]
  np.testing.assert_array_equal(run(signature.attack, arguments).x, np.asarray(result.x)[order])


def check_warning(signature: Signature, call: Call, text: str) -> None:
  """What a warning says is so."""
  order, largest, x = rounding.ORDER[signature.norm], float(call.epsilon.max()), call.arguments['x']
  low, high = (bound.astype(float) for bound in call.bounds)
  width, step_size = float(x.max()) - float(x.min()), np.asarray(call.arguments.get('step_size', 0), float)
  step_size, epsilon = np.broadcast_arrays(step_size, call.epsilon.astype(float))
  number = r'[-+.\de]+|inf|-inf'
  epsilon_is, step_size_is = f'epsilon = ({number}) ', f'step_size = ({number}) '
  if text.startswith('no entry may change: '):
    assert (low == high).all()
  elif re.match(epsilon_is + 'covers the whole input domain ', text):
    assert largest >= np.linalg.norm((high - low).reshape(len(x), -1), order, axis=1).min()
  elif re.match(epsilon_is + 'changes next to nothing where x is ', text):
    assert largest < min(x[0].size ** (1 / order) / 2550, .1) * width
  elif re.match(epsilon_is + 'is larger than what x spans, ', text):
    assert largest > width and width < (high - low).max() / 100
  elif re.match(epsilon_is + 'is lost to rounding where x is ', text):
    edge = x.flat[np.abs(x).argmax()]
    assert edge + edge.dtype.type(largest) == edge or edge - edge.dtype.type(largest) == edge
  elif found := re.match(step_size_is + r'takes (\d+) steps only a part of the way to ', text):
    assert (step_size * int(found[2]) < epsilon).any()
  elif re.match(step_size_is + 'jumps across the ball of ', text):
    assert (step_size > 4 * epsilon).any()
  else:
    check_model_warning(signature, call, text)


def check_model_warning(signature: Signature, call: Call, text: str) -> None:
  """What AutoAttack says about the model is so."""
  model, x, y = (call.arguments[name] for name in ('logits_fn', 'x', 'y'))
  logits = np.asarray(model(jnp.asarray(x)), np.float64)
  valid = logits[np.isfinite(logits.max(axis=1))]
  gaps = np.sort(valid, axis=1)[:, -1] - np.sort(valid, axis=1)[:, -2]
  hides = model.kind in ('steps', 'sometimes_nan')
  assert signature.attack == 'autoattack', text
  if found := re.match(r'(\d) classes: apgd-t maximises z_t - z_y, ', text):
    assert int(found[1]) == (~np.isneginf(logits)).sum(axis=1).min() < 4
  elif found := re.match(r'logits lead by more than ([\d.]+) on ', text):
    assert (gaps > float(found[1]) * (1 - 1e-6)).any()
  elif found := re.match(r'logits differ by less than (\S+): ', text):  # the number is rounded to one digit
    assert np.median(np.ptp(valid, axis=1)) < 1.5 * float(found[1])
  elif found := re.match(r'(\d) of (\d) clean inputs give logits that are not finite; ', text):
    assert int(found[1]) == len(x) - len(valid) and int(found[2]) == len(x)
  elif re.match(r'\d of \d fooled examples have logits that are not finite: ', text):
    assert model.kind == 'sometimes_nan'
  elif re.match('(fab-t|apgd-t|apgd-ce): zero gradients on ', text):
    assert hides or model.kind == 'tanh' or (gaps > 16).any(), text  # saturated
  else:
    assert re.match('(apgd-t|apgd-ce): the loss never rose on |square fooled another ', text), text


def as_type(dtype):
  return lambda value, random: np.asarray(value).astype(dtype)


def with_entry(number):
  def change(value, random):
    value = np.array(value, np.int64 if isinstance(number, int) else None)
    value.flat[random.integers(value.size)] = number
    return value
  return change


def one_of(*values):
  return lambda value, random: values[random.integers(len(values))]


NO_ARRAYS = ('a', {}, [[1], [1, 2]], object())
NO_RADII = (*NO_ARRAYS, -1., -1e-30, np.nan, np.ones(4), np.ones((3, 1)), np.ones((1, 3)), 1j, True,
            [-1.])
NO_COUNTS = 0, -1, 1.5, '3', None, [3], np.array(3.), {}
NO_FLAGS = 'yes', None, 2, [True]
ROWS = [[0, .5], [[0]], np.zeros((3, 1), int), [True] * 3, np.arange(7), [np.nan] * 3, 2**32 + np.arange(3)]
# Names of arguments, and what is given instead. The line of the error begins with one of the names.
MISTAKES = [
    *(('x', with_entry(number)) for number in (np.nan, np.inf, -np.inf)),
    *(('x', as_type(dtype)) for dtype in (np.float16, jnp.bfloat16, int, np.uint8, bool, complex, object)),
    ('x', one_of(None, *NO_ARRAYS)), ('x y', one_of(.5, [])),
    *(('x y', change) for change in (lambda x, _: x[:0], lambda x, _: x[0], lambda x, _: np.append(x, x, 0))),
    *(('y', with_entry(number)) for number in (-1, C, -2**31, 2**32)),
    *(('y', as_type(dtype)) for dtype in (float, bool, str, complex, object)),
    ('y', one_of(*NO_ARRAYS, None, 0, [], np.ones((3, 1), int), np.eye(3), np.zeros((3, 4, 5), int))),
    ('y', lambda y, _: y[:, None]), ('y', lambda y, _: np.append(y, y)),
    ('epsilon', one_of(None, *NO_RADII)), ('step_size', one_of(*NO_RADII, np.inf, 1e300)),
    *((name, one_of(*NO_COUNTS)) for name in ('num_steps', 'num_queries', 'restarts', 'batch_size')),
    ('norm', one_of('inf', 2, None, np.inf, ['l2'], {}, np.ones(2), b'l2')),
    ('bounds', one_of(*NO_ARRAYS, (1., 0.), (.5, .5), (np.nan, 1.), (0., np.nan), (0.,), (0., 1., 2.), 1.,
                      None, (None, 1.), ('0', '1'), (0., [1., [2.]]), (np.zeros(9), 1.), (0j, 1.),
                      (np.inf, np.inf), (-np.inf, -np.inf), {0, 1}, np.zeros((2, 2, 9)))),
    ('mask', one_of(*NO_ARRAYS, 1, 0., True, np.ones(11), np.full((3, 5), 255), np.full((3, 5), np.nan))),
    ('key', one_of(*NO_ARRAYS, 0, np.zeros(2), jax.random.split(jax.random.key(0)), [0, 1], 1.5)),
    ('index', one_of(*NO_ARRAYS, 0, *ROWS)), ('target', one_of(*NO_ARRAYS, 1, [-1, 0, 0], [C, 0, 0], *ROWS)),
    ('tau', one_of(*NO_ARRAYS, -1, 1.5, [1, 2], np.ones((3, 1), int), np.nan, True, 1j, 2**40)),
    ('momentum', one_of(*NO_ARRAYS, -1., np.nan, np.inf, np.ones(3), None, [1.], True, 1j)),
    ('start', one_of(*NO_ARRAYS, 1., np.zeros(3))), ('start', lambda start, _: np.full_like(start, np.nan)),
    ('start', with_entry(np.inf)),
    *((name, one_of(*NO_FLAGS)) for name in ('targeted', 'random_start', 'large_start', 'cascade')),
    ('loss', one_of(None, 'dlr', 3, lambda z, y: 0., lambda z: z, lambda z, y: z.mean(), lambda z, y, *_: z,
                    lambda z, y, *_: y)),
    ('loss_args loss', one_of(3, None, 'ab', {}, np.ones(2), (np.ones(2),), ({},), ('a',), (None, None))),
    ('decide', one_of('fold', 3, lambda z: z[0], lambda z: z.argmax(-1), lambda z: 0.)),
    ('channel_axis', one_of(0, 2, None, '1', [1], np.ones(2), 1.5)),
    ('p_init', one_of(0., -1., 2., np.nan, '1', None, [1.], {}, np.ones(2))),
    ('eot', one_of(-1, 1.5, 'a', None, [1])), ('version', one_of('full', None, 3, ['standard'])),
    ('attacks', one_of((), ('pgd',), ('square', 'square'), 'square', 3, (3,), (['square'],), {})),
    ('search_fn', one_of('f', 3, lambda x: x[None], lambda x, t: x)), ('devices', one_of((), 'cpu', 3, (3,))),
    ('state_path', one_of(3, [])), ('save_every', one_of('a', None, {})), ('progress', one_of(3, 'a')),
    ('warn', one_of(3, 'a')),
    ('logits_fn', one_of(None, 'model', 3, lambda: 0, lambda x: x[None], lambda x: 0., lambda x: x.sum(),
                         lambda x, t: x, lambda x: x.reshape(len(x), -1)[:, 0], lambda x: {},
                         lambda x: np.asarray(x))),
]


def draw_mistake(draw, signature: Signature, arguments: dict[str, Any]):
  """Names, one of which the error must name, and the arguments."""
  has = set(inspect.signature(getattr(attacks, signature.attack)).parameters)
  if signature.attack == 'fgsm':
    has |= {'norm', 'loss', 'loss_args', 'decide', 'bounds', 'mask', 'targeted'}
  # These have an effect only in some signatures.
  has -= {'target', 'start'} - set(signature.drawn)
  if 'num_queries' not in arguments:
    has -= {'num_queries', 'channel_axis'}
  mistakes = MISTAKES + [('step_size', one_of(None))] * (signature.attack == 'pgd')  # fmn's default
  names, change = draw(st.sampled_from([mistake for mistake in mistakes if mistake[0].split()[0] in has]))
  names, arguments = names.split(), dict(arguments)
  random = np.random.default_rng(draw(st.integers(0, 999)))
  arguments[names[0]] = change(arguments.get(names[0]), random)
  if names == ['bounds']:
    arguments.pop('mask', None)  # an entry that it holds back needs no bounds
  return names, arguments


def check_call(attack: str, data) -> None:
  """Draws a call, in a quarter of the cases with a mistake, and checks what comes of it."""
  signature = data.draw(st.sampled_from([s for s in SIGNATURES if s.attack == attack]))
  with jax.enable_x64(signature.dtype == 'float64'), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    call = draw_call(data.draw, signature)
    if data.draw(st.integers(0, 3)) == 3:
      names, arguments = draw_mistake(data.draw, signature, call.arguments)
      with pytest.raises(ValueError) as error:
        run(attack, arguments)
      line = str(error.value)
      assert re.match(rf'({"|".join(names)})\b', line) and '\n' not in line, line
      return
    result = run(attack, call.arguments)
    check_result(signature, call, result)
    if data.draw(st.integers(0, 3)) == 3:
      check_order(signature, call, result, np.array(data.draw(st.permutations(range(signature.shape[0])))))
  for warning in caught:
    check_warning(signature, call, str(warning.message))


@pytest.mark.long
@pytest.mark.parametrize('attack', OPTIONS)
def test_calls_give_valid_results_or_one_line(attack):
  @hypothesis.settings(max_examples=EXAMPLES[attack], suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(st.data())
  def fuzz(data):
    check_call(attack, data)

  fuzz()


@pytest.mark.parametrize('channel_axis', [-1, 1])
def test_square_refuses_volumes_before_it_runs(channel_axis):
  x, y = np.zeros(VOLUME, np.float32), np.zeros(3, int)
  with pytest.raises(ValueError, match=r'^x has examples of shape \(2, 3, 2, 2\): Square needs '):
    attacks.square(Model('linear', np.ones((24, 9))), x, y, jax.random.key(0), epsilon=.1,
                   channel_axis=channel_axis)

"""Checks functions that a configuration imports, by tracing a training step before the first one.

These are networks, optimizers, inner attacks and losses. Nothing is computed: `jax.eval_shape` runs their
Python code with shapes and dtypes only. A mistake becomes one line.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from at_jax import attacks, devices, errors, methods
from at_jax.config import import_path
from at_jax.methods import objective as objective_lib
from at_jax.methods import weight_averaging
from at_jax.training import epoch_plan, networks, setup
from at_jax.training import step as step_lib

_TRACEABLE = 'JAX must be able to trace it: use jax.numpy, not NumPy or PyTorch, and jnp.where, not if'
# Of an inner attack's result: the dtype to name in a message, and the kind to accept.
_RESULT = {'x': ('float32', jnp.floating), 'success': ('bool', jnp.bool_), 'kappa': ('int32', jnp.integer)}


def check(run: setup.Run, warn: Callable[[str], None] = lambda line: None) -> None:
  """Checks what the functions return that a configuration imports.

  Args:
    run: the run.
    warn: called with one line for what is possible but probably a mistake.

  Raises:
    errors.UserError: if a function cannot be traced, or returns another type, shape or dtype.
  """
  c = run.config.copy_and_resolve_references()
  own = _imported(c)
  if 'model.name' in own:
    _check_network(run)
  if 'attack.kind' not in own:  # one step of an attack of this package shows as much as all
    c.attack.num_steps = 1
  warn = functools.cache(warn)  # each line once, though a loss is traced several times
  phases = {epoch_plan.name(c, epoch): epoch for epoch in range(c.epochs)} if own else {}
  for phase, epoch in phases.items():
    _check_step(run._replace(config=c), phase, epoch, own, warn)


def _imported(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fields that name an import path, with their values; errors without a known cause name the first."""
  values = {'loss': config.loss, 'attack.kind': config.attack.kind, 'optimizer.name': config.optimizer.name,
            'model.name': config.model.name}
  return {field: value for field, value in values.items() if '.' in value}


@contextlib.contextmanager
def _guard(field: str, value: str) -> Iterator[None]:
  """Turns what a function of the user's own raises into one line."""
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:
    reason = import_path.reason(error)
    remedy = _TRACEABLE if re.search('[Tt]race', reason) else 'docs/extending.md says how it is called'
    raise errors.UserError(f'config.{field}', value, f'{reason}: {remedy}') from error


def _batch_size(run: setup.Run) -> int:
  """A multiple of a device's share of the batch that equals no other axis, nor does its double."""
  share, classes = run.config.batch_size // jax.device_count(), run.dataset.num_classes
  lengths = {*run.dataset.image_shape, classes, 2 * classes}
  times = 1
  while {times * share, 2 * times * share} & lengths:
    times += 1
  return times * share


def _check_network(run: setup.Run) -> None:
  name, size = run.config.model.name, _batch_size(run)
  outputs = run.config.dataset.num_classes * (2 if run.config.dummy.enabled else 1)
  wrong = functools.partial(errors.UserError, 'config.model.name', name)

  kept = []

  def train(variables, x):
    logits, batch_stats = run.network.train(variables, x)
    # strict=False, because a change of structure has a message of its own.
    kept.extend(old is new for old, new in zip(
        *map(jax.tree.leaves, (variables['batch_stats'], batch_stats)), strict=False))
    return logits, batch_stats

  def call(x):
    variables = run.network.init(run.keys['init'], x[:1])
    variables = {part: variables[part] for part in ('params', 'batch_stats')}
    trained = jax.vmap(lambda x: train(variables, x), axis_name=devices.AXIS)(x[None])
    return variables, run.network.logits(variables, x), jax.tree.map(lambda leaf: leaf[0], trained)

  x = jax.ShapeDtypeStruct((size, *run.dataset.image_shape), jnp.float32)
  with _guard('model.name', name):
    variables, inference, (training, batch_stats) = jax.eval_shape(call, x)
  for mode, logits in (('', inference), (' with train=True', training)):
    if not _is(logits, jnp.floating) or logits.shape != (size, outputs):
      raise wrong(f'{_text(x)} gives {_text(logits)}{mode}: return logits float32[{size}, {outputs}], one '
                  'row per example')
  if _spec(batch_stats) != _spec(variables['batch_stats']):
    raise wrong('its BatchNorm statistics change their structure in a step')
  has_statistics, make = jax.tree.leaves(batch_stats), networks.maker(run.config)
  if has_statistics and jax.device_count() > 1 and not import_path.accepts(make, 'axis_name'):
    raise wrong('its BatchNorm statistics would differ between devices: give it an argument axis_name, and '
                'pass that to BatchNorm')
  if has_statistics and all(kept):
    raise wrong('its BatchNorm statistics do not change in train mode: __call__ needs an argument named '
                'train, and BatchNorm use_running_average=not train')
  if not has_statistics and run.config.loss == 'finetune' and run.config.finetune.batch_norm == 'dual':
    raise errors.UserError('config.finetune.batch_norm', 'dual', "the network has no BatchNorm: use 'shared'")


def _check_step(run: setup.Run, phase: str, epoch: int, own: dict[str, str],
                warn: Callable[[str], None]) -> None:
  suspect = next(iter(own))
  with _guard(suspect, own[suspect]):
    state = jax.eval_shape(lambda: setup.init_state(run))
    jax.eval_shape(weight_averaging.eval_params, state.opt_state, state.params)  # refuses two averages
    recipe = _checked(epoch_plan.recipe(run, phase), run.config, own, warn)
    size, image = _batch_size(run), run.dataset.image_shape
    step = functools.partial(step_lib.train_step, recipe=recipe, axis_name=devices.AXIS)
    one_device = lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    before, images, labels = jax.tree.map(one_device, (
        state, jax.ShapeDtypeStruct((size, *image), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)))
    after, _ = jax.eval_shape(jax.vmap(step, in_axes=(0, 0, 0, 0, None, None), axis_name=devices.AXIS),
                              before, images, labels, labels, run.keys['train'],
                              epoch_plan.epoch_values(run.config, epoch))
  for part, field in (('batch_stats', 'loss'), ('opt_state', 'optimizer.name'), ('params', 'optimizer.name')):
    if _spec(getattr(after, part)) != _spec(getattr(before, part)):
      field = field if field in own else suspect
      raise errors.UserError(f'config.{field}', own[field], f'a step changes the structure, a shape or a '
                             f'dtype of {part}: return what was given, with new values')


def _checked(recipe: step_lib.Recipe, config: ml_collections.ConfigDict, own: dict[str, str],
             warn: Callable[[str], None]) -> step_lib.Recipe:
  """A recipe whose imported functions are checked when they are called."""
  if 'loss' in own:
    recipe = recipe._replace(objective=_checked_loss(recipe, own['loss'], warn))
  if 'attack.kind' in own and recipe.attack is not None:
    layouts = (1,) if config.loss in methods.OBJECTIVES and config.loss != 'gair_trades' else (1, 2)
    recipe = recipe._replace(attack=_checked_attack(recipe.attack, own['attack.kind'], layouts))
  if 'optimizer.name' in own:
    recipe = recipe._replace(optimizer=_checked_optimizer(recipe.optimizer, own['optimizer.name']))
  return recipe


def _checked_loss(recipe: step_lib.Recipe, value: str, warn: Callable[[str], None]) -> Callable:
  def call(forward, batch_stats, x, x_adv, y, **options):
    widths = []

    def watched(x, batch_stats, **branch):
      logits, batch_stats = forward(x, batch_stats, **branch)
      widths.append(logits.shape[-1])
      return logits, batch_stats

    with _guard('loss', value):
      outcome = recipe.objective(watched, batch_stats, x, x_adv, y, **options)
    outcome = objective_lib.check(outcome, recipe.objective, len(y), recipe.views)
    if widths and outcome.logits.shape[1] != widths[0]:
      raise errors.UserError('config.loss', value, f'its logits are {_text(outcome.logits)}: return those of '
                             f'forward, {widths[0]} for each example')
    statistics = zip(*map(jax.tree.leaves, (batch_stats, outcome.batch_stats)), strict=False)
    if jax.tree.leaves(batch_stats) and all(old is new for old, new in statistics):
      warn(f'config.loss = {value!r}: it returns the BatchNorm statistics that it was given, so they never '
           'change: return those of forward')
    return outcome
  return call


def _checked_attack(attack: Callable, value: str, layouts: tuple[int, ...]) -> Callable:
  def call(logits_fn, x, y, key, index, **options):
    with _guard('attack.kind', value):
      found = attack(logits_fn, x, y, key, index, **options)
    if not isinstance(found, attacks.AttackResult):
      raise errors.UserError('config.attack.kind', value, f'its attack returned {_text(found)}: return '
                             'attacks.AttackResult(x, success, kappa, loss)')
    shapes = {'x': [(times * len(x), *x.shape[1:]) for times in layouts], 'success': [y.shape],
              'kappa': [y.shape]}
    for field, (dtype, kind) in _RESULT.items():
      values = getattr(found, field)
      if not (_is(values, kind) and values.shape in shapes[field]):
        raise errors.UserError('config.attack.kind', value, f'its {field} is {_text(values)}: use '
                               f'{dtype}[{", ".join(map(str, shapes[field][0]))}]')
    return found
  return call


def _checked_optimizer(optimizer: optax.GradientTransformation, value: str) -> optax.GradientTransformation:
  def update(updates, state, params=None, **extra_args):
    with _guard('optimizer.name', value):
      found, state = optimizer.update(updates, state, params, **extra_args)
    shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
    if shapes(found) != shapes(updates):
      raise errors.UserError('config.optimizer.name', value, 'its updates have other shapes than the '
                             'gradients: return one update for each parameter')
    return found, state
  return optimizer._replace(update=update)


def _is(values: Any, kind: Any) -> bool:
  return hasattr(values, 'shape') and hasattr(values, 'dtype') and jnp.issubdtype(values.dtype, kind)


def _spec(tree: Any) -> tuple:
  return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _text(values: Any) -> str:
  """A value in words: float32[8, 10], or its type."""
  if not hasattr(values, 'shape') or not hasattr(values, 'dtype'):
    return f'a {type(values).__name__}'
  return f'{values.dtype}[{", ".join(map(str, values.shape))}]'

"""The training step of one device, pure, with a named axis for what devices share.

`sharding.py` runs it with `jax.pmap`; `jax.vmap(axis_name=…)` on one device computes the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from at_jax import attacks
from at_jax import data
from at_jax import network as network_lib
from at_jax import objectives
from at_jax.attacks import loops

Array = jax.Array
# (logits_fn, x, y, key, index) -> x'
Attack = Callable[[attacks.LogitsFn, Array, Array, Array, Array], Array]


class TrainState(NamedTuple):
  """Everything a step changes; with the seed, everything a run needs to go on.

  Attributes:
    step: i32[], steps taken.
    params: the network's parameters.
    batch_stats: its BatchNorm statistics.
    opt_state: the optimizer's state.
  """
  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any


class Metrics(NamedTuple):
  """Means over the global batch.

  Attributes:
    loss: f32[], in nats.
    accuracy: f32[], of the deployed decision on the examples the method learns from (x', or x where
      there is no attack), in train mode.
    finite: bool[], the loss and every gradient are numbers.
  """
  loss: Array
  accuracy: Array
  finite: Array


class Recipe(NamedTuple):
  """What a step does: functions and static values, fixed for a phase of training.

  Attributes:
    network: the network.
    optimizer: an optax transformation.
    objective: of `objectives`.
    attack: `(logits_fn, x, y, key, index) -> x'`, or None for clean training.
    attack_folded: attack the deployed logits instead of the head's.
    pad: of `data.augment`.
    flip: of `data.augment`.
  """
  network: network_lib.Network
  optimizer: optax.GradientTransformation
  objective: Callable[..., objectives.Outcome]
  attack: Attack | None
  attack_folded: bool
  pad: int
  flip: bool


def init(network: network_lib.Network, optimizer: optax.GradientTransformation, key: Array,
         x: Array) -> TrainState:
  """A state at step 0.

  Args:
    network: the network.
    optimizer: an optax transformation.
    key: a PRNG key.
    x: f32[B, ...], any input of the right shape.

  Returns:
    A `TrainState`.

  Source: ours.
  """
  variables = network.init(key, x)
  return TrainState(jnp.zeros((), jnp.int32), variables['params'], variables['batch_stats'],
                    optimizer.init(variables['params']))


def train_step(
    state: TrainState, images: Array, labels: Array, index: Array, key: Array, *, recipe: Recipe,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One step: augment, attack in inference mode, update in train mode.

  What an example draws depends on the key, the step and its index alone, so it is the same on any
  number of devices. The attack has no collective in it; the update has those of BatchNorm and one
  mean of the gradients.

  Args:
    state: the state before.
    images: uint8[b, H, W, C], this device's share of the batch.
    labels: i32[b].
    index: i32[b], the examples' places in the training set.
    key: the run's PRNG key for training.
    recipe: what to do.
    axis_name: the axis over devices, or None.

  Returns:
    The state after, and the step's `Metrics`.

  Source: ours.
  """
  augment_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
  keys = jax.vmap(lambda i: jax.random.fold_in(augment_key, i))(index)
  x = data.to_unit(data.augment(images, keys, pad=recipe.pad, flip=recipe.flip))
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  x_adv = x
  if recipe.attack is not None:
    logits = recipe.network.deployed if recipe.attack_folded else recipe.network.logits
    x_adv = recipe.attack(jax.tree_util.Partial(logits, variables), x, labels, attack_key, index)
    x_adv = jax.lax.stop_gradient(x_adv)

  def mean_loss(params: Any) -> tuple[Array, objectives.Outcome]:
    forward = lambda x: recipe.network.train(variables | {'params': params}, x)
    outcome = recipe.objective(forward, x, x_adv, labels)
    return jnp.mean(outcome.loss), outcome

  (loss, outcome), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
  accuracy = jnp.mean(jnp.argmax(recipe.network.fold(outcome.logits), axis=-1) == labels)
  if axis_name is not None:
    gradients, loss, accuracy = jax.lax.pmean((gradients, loss, accuracy), axis_name)
  finite = jax.tree.reduce(
      jnp.logical_and, jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), gradients),
      jnp.isfinite(loss))
  updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = TrainState(state.step + 1, params, outcome.batch_stats, opt_state)
  return state, Metrics(loss, accuracy, finite)


def train_steps(
    state: TrainState, images: Array, labels: Array, order: Array, key: Array, *, recipe: Recipe,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """Several steps in one program, on a training set that lives on the device.

  Args:
    state: the state before.
    images: uint8[N, H, W, C], the whole training set.
    labels: i32[N].
    order: i32[S, b], which examples this device takes in each step.
    key: the run's PRNG key for training.
    recipe: what to do.
    axis_name: the axis over devices, or None.

  Returns:
    The state after S steps, and `Metrics` with a leading axis S.

  Source: ours.
  """
  def body(state: TrainState, index: Array) -> tuple[TrainState, Metrics]:
    return train_step(state, images[index], labels[index], index, key, recipe=recipe,
                      axis_name=axis_name)

  return loops.scan(body, state, order, length=len(order))

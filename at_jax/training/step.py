"""The training step of one device, a pure function with a named axis for collectives.

`sharding.py` runs it with `jax.pmap`. `jax.vmap(axis_name=…)` on one device computes the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from at_jax import attacks
from at_jax.attacks import _loops, _stepper
from at_jax.datasets import autoaugment as autoaugment_lib
from at_jax.datasets import pipeline
from at_jax.methods import awp, carried, cfa, finetune, free_at, precision, schedules, weight_averaging
from at_jax.methods import inner_attacks as inner_attacks_lib
from at_jax.methods import objective as objective_lib
from at_jax.models import deployed as deployed_lib

Array = jax.Array


class TrainState(NamedTuple):
  """The state that a step changes. With the configuration it is all that a run needs to resume.

  Attributes:
    step: i32[], number of steps taken.
    params: parameters of the network.
    batch_stats: BatchNorm statistics of the network.
    opt_state: state of the optimizer.
    class_counts: `cfa.ClassCounts` if weights or calibration depend on the class, else empty.
    average: `weight_averaging.FairAverageState` if CFA averages weights, else empty.
    tuning: what the method keeps besides. `methods.finetune.Tuning` for the loss 'finetune'; perturbations
      as `methods.carried` packs them, in the form of `rows`, of each training example for 'fgsm_pgi' and
      of each place of the global batch for 'free_at'; else empty. Another field would make earlier
      checkpoints unreadable.
  """
  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  class_counts: Any = ()
  average: Any = ()
  tuning: Any = ()


class Metrics(NamedTuple):
  """Means over the global batch.

  Attributes:
    loss: f32[], in nats.
    accuracy: f32[], fraction of correct deployed decisions in train mode, at x', or at x without an
      attack.
    finite: bool[], the loss and all gradients are finite.
  """
  loss: Array
  accuracy: Array
  finite: Array


class EpochValues(NamedTuple):
  """Values that change between epochs without compiling again.

  Attributes:
    weighted: bool[], importance weights are used; otherwise all are exactly 1.
    tau: i32[], τ of friendly PGD; None for an attack that does not stop early.
    calibrated: bool[], factors per class are used; otherwise all are exactly 1.
    autoaugmented: bool[], AutoAugment is used, if the recipe has it.
    lam: f32[], λ of `gairat.weigh`; None for other weights.
    epoch: i32[], the epoch, from which the schedule of ε goes on with each step; None without one.
    beta: f32[], β of the epoch; None for that of the recipe.
    fresh: bool[], the attack starts at random and not where the epoch before ended; None if it carries
      nothing over.
  """
  weighted: Array | bool = True
  tau: Array | None = None
  calibrated: Array | bool = True
  autoaugmented: Array | bool = True
  lam: Array | None = None
  epoch: Array | None = None
  beta: Array | None = None
  fresh: Array | None = None


DEFAULT_VALUES = EpochValues()


class Recipe(NamedTuple):
  """What a step does: functions and static values, fixed for a phase of training.

  Attributes:
    network: the network.
    optimizer: optax transformation.
    objective: objective, as `methods.objective` describes it.
    attack: inner attack, as `methods.inner_attacks` describes it; None for clean training. It gets
      `tau` if it is friendly, `epsilon` if radii are calibrated and `scale` if a regulator or a schedule
      scales it.
    attack_folded: attack the deployed logits instead of those of the head.
    pad: pixels of padding, as for `datasets.augment`.
    flip: random flips, as for `datasets.augment`.
    weigh: `(evidence, axis_name=…) -> weights f32[B]`, or None.
    weights_on: as for `objective.mean_loss`.
    beta: as for `objective.mean_loss`.
    awp_gamma: γ of `awp.awp_value_and_grad`.
    views: number of augmentations of each example per step; each is attacked.
    steps_per_epoch: number of steps after which `cfa.ClassCounts` are reset.
    ramp_epochs: as `config.attack.ramp_epochs`, the schedule of ε; each step has its own radius.
    calibration: what is calibrated by class.
    uses_teacher: pass the logits of the teacher at x to the objective, as `reference`.
    regulate: `(tuning, index, robust, axis_name=…) -> tuning`, or None.
    autoaugment: apply `datasets.autoaugment.augment` after `datasets.augment`.
    attack_beta: pass β to the attack, as `beta`.
    radius: ε of the configuration, the scale of perturbations that are carried over.
    replays: m of Free-AT, steps that a minibatch is used for; 0 for any other method.
    image_shape: (H, W, C) of a training set that is given as `rows`; () if it is given as images.
  """
  network: deployed_lib.Network
  optimizer: optax.GradientTransformation
  objective: Callable[..., objective_lib.Outcome]
  attack: Callable[..., attacks.AttackResult] | None
  attack_folded: bool
  pad: int
  flip: bool
  weigh: Callable[..., Array] | None = None
  weights_on: str = 'fit'
  beta: float = 0.
  awp_gamma: float = 0.
  views: int = 1
  steps_per_epoch: int = 1
  ramp_epochs: tuple[int, ...] = ()
  calibration: cfa.Calibration = cfa.Calibration()
  uses_teacher: bool = False
  regulate: Callable[..., finetune.Tuning] | None = None
  autoaugment: bool = False
  attack_beta: bool = False
  radius: float = 0.
  replays: int = 0
  image_shape: tuple[int, ...] = ()


def init(network: deployed_lib.Network, optimizer: optax.GradientTransformation, key: Array,
         x: Array, *, classes_counted: int = 0, averaged: bool = False) -> TrainState:
  """Makes the state at step 0.

  Args:
    network: the network.
    optimizer: optax transformation.
    key: PRNG key.
    x: f32[B, ...], any input of the right shape.
    classes_counted: C to keep `cfa.ClassCounts`, else 0.
    averaged: keep a `weight_averaging.FairAverageState`.

  Returns:
    A `TrainState`.
  """
  variables = network.init(key, x)
  params = variables['params']
  counts = cfa.zero_counts(classes_counted) if classes_counted else ()
  return TrainState(jnp.zeros((), jnp.int32), params, variables['batch_stats'],
                    optimizer.init(params), counts,
                    weight_averaging.init_fair_average(params) if averaged else ())


class Examples(NamedTuple):
  """The examples of a step, one per view: the first views of all, then the second.

  Attributes:
    x: f32[V·b, H, W, C], augmented, in 0..1.
    x_adv: f32[V·b, H, W, C], attacked; twice as many for an attack of two points per example.
    y: i32[V·b].
    kappa: i32[V·b], κ of the attack; None without an attack.
    robust: bool[V·b], still classified correctly at x', in inference mode; None without an attack.
    reference: logits of the teacher at x, or None.
    moved: f32[b, H, W, C], x' minus the augmented image, where x is the start of the attack; else None.
  """
  x: Array
  x_adv: Array
  y: Array
  kappa: Array | None
  robust: Array | None = None
  reference: Array | None = None
  moved: Array | None = None


def _examples(state, images, labels, index, key, values, recipe, by_class, axis_name) -> Examples:
  """Augments and attacks. It has no collective, except in the attack of NuAT."""
  step = state.step // recipe.replays if recipe.replays else state.step
  augment_key, attack_key = jax.random.split(jax.random.fold_in(key, step))
  keys = jax.vmap(lambda i: jax.random.fold_in(augment_key, i))(index)
  if recipe.views == 2:
    keys = jnp.concatenate(list(jax.vmap(jax.random.split, out_axes=1)(keys)))
    images, y = jnp.concatenate([images, images]), jnp.concatenate([labels, labels])
    index = jnp.concatenate([index, ~index])  # no example has index ~i, so the second view has its own draws
  else:
    y = labels
  images = pipeline.augment(images, keys, pad=recipe.pad, flip=recipe.flip)
  if recipe.autoaugment:
    images = jax.lax.cond(values.autoaugmented, autoaugment_lib.augment, lambda images, _: images,
                          images, keys)
  x = pipeline.to_unit(images)
  if recipe.replays:
    delta = _carried(state, _places(index, axis_name), x, recipe)
    return Examples(x, jnp.clip(x + delta, 0, 1), y, None)
  if recipe.attack is None:
    return Examples(x, x, y, None)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  logits = recipe.network.deployed if recipe.attack_folded else recipe.network.logits
  tuned = isinstance(state.tuning, finetune.Tuning)
  scale = finetune.attack_scale(state.tuning, index) if tuned else None
  if values.epoch is not None:
    ramp = _ramp(state, values, recipe)
    scale = ramp if scale is None else ramp * scale
  epsilon = None if by_class.epsilon is None else by_class.epsilon[y]
  options = {'tau': values.tau, 'epsilon': epsilon, 'scale': scale,
             'beta': _beta(values, recipe) if recipe.attack_beta else None}
  if values.fresh is not None:
    options['start'] = start = _prior(state, x, index, jax.random.fold_in(attack_key, 1), values, recipe)
  options = {name: value for name, value in options.items() if value is not None}
  logits = jax.tree_util.Partial(logits, variables)
  found = jax.lax.stop_gradient(recipe.attack(logits, x, y, attack_key, index, **options))
  if values.fresh is not None:
    return Examples(start, found.x, y, found.kappa, ~found.success, moved=found.x - x)
  reference = recipe.network.logits(state.tuning.teacher, x) if recipe.uses_teacher else None
  return Examples(x, found.x, y, found.kappa, ~found.success, reference)


def _places(index: Array, axis_name: str | None) -> Array:
  """The places of this device's examples in the global batch."""
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(index)
  return first + jnp.arange(len(index), dtype=jnp.int32)


def _carried(state: TrainState, places: Array, x: Array, recipe: Recipe) -> Array:
  return carried.unpack(state.tuning[places], recipe.radius, x.dtype).reshape(x.shape)


def _prior(state, x, index, key, values, recipe) -> Array:
  """x + δ₀: the perturbation that each example had in the epoch before, or random signs."""
  signs = jnp.where(inner_attacks_lib.unit_noise(x, key, index) < 0, -1, 1).astype(x.dtype)
  before = _carried(state, index, x, recipe)
  return jnp.clip(x + jnp.where(values.fresh, _radius(state, values, recipe) * signs, before), 0, 1)


def _ramp(state: TrainState, values: EpochValues, recipe: Recipe) -> Array:
  # Not state.step alone: steps that only estimate statistics of BatchNorm count from 0.
  share = state.step % recipe.steps_per_epoch / recipe.steps_per_epoch
  return schedules.ramp(values.epoch + share, *recipe.ramp_epochs)


def _radius(state: TrainState, values: EpochValues, recipe: Recipe) -> float | Array:
  return recipe.radius if values.epoch is None else _ramp(state, values, recipe) * recipe.radius


def _beta(values: EpochValues, recipe: Recipe) -> float | Array:
  return recipe.beta if values.beta is None else values.beta


def train_step(
    state: TrainState, images: Array, labels: Array, index: Array, key: Array,
    values: EpochValues = DEFAULT_VALUES, *, recipe: Recipe, axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """Takes one step: augments, attacks in inference mode, and updates in train mode.

  The draws of an example depend only on the key, the step and its index, so they are the same on any
  number of devices. The attack has no collective, except that of NuAT. The update has those of BatchNorm, of
  weight normalisers and of the mean of the gradients.

  Args:
    state: the state before the step.
    images: uint8[b, H, W, C], the share of the batch of this device.
    labels: i32[b].
    index: i32[b], positions of the examples in the training set.
    key: PRNG key of training.
    values: values of the epoch.
    recipe: what a step does.
    axis_name: axis over devices, or None.

  Returns:
    The state after the step, and its `Metrics`.
  """
  examples = attacked(state, images, labels, index, key, values, recipe=recipe, axis_name=axis_name)
  return update(state, examples, index, values, recipe=recipe, axis_name=axis_name)


def attacked(state: TrainState, images: Array, labels: Array, index: Array, key: Array,
             values: EpochValues = DEFAULT_VALUES, *, recipe: Recipe, axis_name: str | None = None
             ) -> Examples:
  """Augments and attacks the examples of a step: the first half of `train_step`.

  It has no collective, except in the attack of NuAT, which couples the examples of a batch.

  Args:
    state: the state before the step.
    images: uint8[b, H, W, C], the share of the batch of this device.
    labels: i32[b].
    index: i32[b], positions of the examples in the training set.
    key: PRNG key of training.
    values: values of the epoch.
    recipe: what a step does.
    axis_name: axis over devices, or None.

  Returns:
    The `Examples` of this device.
  """
  by_class = _by_class(state, values, recipe)[1]
  return _examples(state, images, labels, index, key, values, recipe, by_class, axis_name)


def _by_class(state: TrainState, values: EpochValues, recipe: Recipe) -> tuple[Any, cfa.ByClass]:
  """The counts at the start of a step, and the factors that they give."""
  counts = cfa.begin_epoch(state.class_counts, state.step % recipe.steps_per_epoch == 0)
  return counts, cfa.by_class(recipe.calibration, counts, values.calibrated)


def update(state: TrainState, examples: Examples, index: Array, values: EpochValues = DEFAULT_VALUES, *,
           recipe: Recipe, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
  """Updates the state with attacked examples: the second half of `train_step`, with its collectives.

  Args:
    state: the state before the step.
    examples: what `attacked` returned.
    index: i32[b], positions of the examples in the training set.
    values: values of the epoch.
    recipe: what a step does.
    axis_name: axis over devices, or None.

  Returns:
    The state after the step, and its `Metrics`.
  """
  counts, by_class = _by_class(state, values, recipe)

  def mean_loss(params: Any, x_adv: Array = examples.x_adv) -> tuple[Array, objective_lib.Outcome]:
    outcome = _outcome(state._replace(params=params), examples._replace(x_adv=x_adv), recipe, by_class)
    w = None
    if recipe.weigh is not None:
      evidence = objective_lib.Evidence(examples.kappa, recipe.network.fold(outcome.logits), examples.y,
                                    counts.accuracy if counts else None)
      schedule = {} if values.lam is None else {'lam': values.lam}
      w = jnp.where(values.weighted,
                    recipe.weigh(evidence, axis_name=axis_name, **schedule), 1)
    betas = None if by_class.beta is None else by_class.beta[examples.y]
    loss = objective_lib.mean_loss(outcome, w, weights_on=recipe.weights_on,
                                beta=_beta(values, recipe), betas=betas)
    return loss, outcome

  if recipe.replays:
    both = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
    (loss, outcome), (gradients, slope) = both(state.params, examples.x_adv)
  else:
    value_and_grad = awp.awp_value_and_grad(mean_loss, gamma=recipe.awp_gamma, has_aux=True,
                                            axis_name=axis_name)
    (loss, outcome), gradients = value_and_grad(state.params)
  correct = _stepper.is_correct(recipe.network.fold(outcome.logits), examples.y)
  accuracy = jnp.mean(correct)
  if axis_name is not None:
    gradients, loss, accuracy = jax.lax.pmean((gradients, loss, accuracy), axis_name)
  finite = jax.tree.reduce(
      jnp.logical_and, jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), gradients),
      jnp.isfinite(loss))
  updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
  params = precision.apply_updates(state.params, updates)
  counts = cfa.count(counts, correct, examples.y, axis_name)
  tuning = state.tuning
  if recipe.regulate is not None:
    tuning = recipe.regulate(tuning, index, examples.robust, axis_name=axis_name)
  elif recipe.replays:
    moved = free_at.ascend(examples.x, examples.x_adv, slope, _radius(state, values, recipe))
    tuning = carried.store(tuning, _places(index, axis_name), moved, recipe.radius, axis_name=axis_name)
  elif examples.moved is not None:
    tuning = carried.store(tuning, index, examples.moved, recipe.radius, axis_name=axis_name)
  state = state._replace(step=state.step + 1, params=params, batch_stats=outcome.batch_stats,
                         opt_state=opt_state, class_counts=counts, tuning=tuning)
  return state, Metrics(loss, accuracy, finite)


def _outcome(state: TrainState, examples: Examples, recipe: Recipe,
             by_class: cfa.ByClass) -> objective_lib.Outcome:
  y, temperature = examples.y, by_class.temperature

  def forward(x: Array, batch_stats: Any, **branch) -> tuple[Array, Any]:
    logits, batch_stats = recipe.network.train(
        {'params': state.params, 'batch_stats': batch_stats}, x, **branch)
    if temperature is not None:
      logits = cfa.temper(logits, y, temperature)
    return logits, batch_stats

  options = {'reference': examples.reference} if recipe.uses_teacher else {}
  outcome = objective_lib.check(
      recipe.objective(forward, state.batch_stats, examples.x, examples.x_adv, y, **options),
      recipe.objective, len(y), recipe.views)
  if temperature is not None:  # weights and counts use the logits of the network
    outcome = outcome._replace(logits=cfa.temper(outcome.logits, y, 1 / temperature))
  return outcome


def rows(images: Any) -> Any:
  """Flattens the images of a training set, so that a TPU keeps it as it is.

  A program that picks examples among images of 32 × 32 pixels would first copy the whole set into a layout
  in which 32 pixels take the place of 128. The same holds for perturbations.

  Args:
    images: uint8[N, H, W, C].

  Returns:
    uint8[N, H·W·C].
  """
  return images.reshape(len(images), -1)


def _taken(images: Array, index: Array, recipe: Recipe) -> Array:
  """The images of some examples, uint8[b, H, W, C]."""
  return images[index].reshape(-1, *recipe.image_shape or images.shape[1:])


def train_steps(
    state: TrainState, images: Array, labels: Array, order: Array, key: Array,
    values: EpochValues = DEFAULT_VALUES, *, recipe: Recipe, axis_name: str | None = None,
    streamed: bool = False,
) -> tuple[TrainState, Metrics]:
  """Takes several steps in one program.

  Args:
    state: the state before the steps.
    images: uint8[N, H·W·C], the whole training set as `rows`, or uint8[N, H, W, C]; uint8[S, b, H, W, C] of
      these steps if streamed.
    labels: i32[N], or i32[S, b].
    order: i32[S, b], the examples of this device in each step.
    key: PRNG key of training.
    values: values of the epoch.
    recipe: what a step does.
    axis_name: axis over devices, or None.
    streamed: whether images and labels are those of the steps.

  Returns:
    The state after S steps, and `Metrics` with a leading axis S.
  """
  def body(state: TrainState, images: Array, labels: Array, index: Array) -> tuple[TrainState, Metrics]:
    return train_step(state, images, labels, index, key, values, recipe=recipe, axis_name=axis_name)

  return _scan(body, state, images, labels, order, recipe, streamed)


def _scan(body: Callable, state: TrainState, images: Array, labels: Array, order: Array, recipe: Recipe,
          streamed: bool) -> tuple[TrainState, Any]:
  """Scans `body(state, images, labels, index)` over the steps."""
  if streamed:
    return _loops.scan(lambda state, batch: body(state, *batch), state, (images, labels, order),
                       length=len(order))
  pick = lambda index: (_taken(images, index, recipe), labels[index], index)
  return _loops.scan(lambda state, index: body(state, *pick(index)), state, order, length=len(order))


def batchnorm_steps(
    state: TrainState, images: Array, labels: Array, order: Array, key: Array,
    values: EpochValues = DEFAULT_VALUES, *, recipe: Recipe, axis_name: str | None = None,
    streamed: bool = False,
) -> tuple[TrainState, None]:
  """Updates the BatchNorm statistics as `train_steps` does, with fixed parameters.

  The examples are augmented, attacked and passed through the network as in training.

  Args:
    state: the state before the steps; its optimizer state is not used.
    images: as in `train_steps`.
    labels: as in `train_steps`.
    order: i32[S, b], the examples of this device in each step.
    key: PRNG key.
    values: values of the epoch.
    recipe: what a training step does.
    axis_name: axis over devices, or None.
    streamed: as in `train_steps`.

  Returns:
    The state with statistics updated S times, and None.

  Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018
  (re-estimation for an average of weights).
  """
  def body(state: TrainState, images: Array, labels: Array, index: Array) -> tuple[TrainState, None]:
    by_class = cfa.by_class(recipe.calibration, state.class_counts, values.calibrated)
    examples = _examples(state, images, labels, index, key, values, recipe, by_class, axis_name)
    outcome = _outcome(state, examples, recipe, by_class)
    return state._replace(step=state.step + 1, batch_stats=outcome.batch_stats), None

  return _scan(body, state, images, labels, order, recipe, streamed)

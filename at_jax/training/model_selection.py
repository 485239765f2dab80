"""What held-out training examples decide: the best checkpoint, an average, a change of the logits.

Each time PGD attacks the deployed model on them, at the radius of training and with the steps of
`config.validate`.
"""

from collections.abc import Callable
from typing import Any

from at_jax.evaluation import robustness
from at_jax.methods import weight_averaging
from at_jax.models import logit_adjustment
from at_jax.training import setup
from at_jax.training import step as step_lib

Variables = dict[str, Any]


def report(run: setup.Run, variables: Variables) -> robustness.Report:
  """The verdicts on the validation split.

  Args:
    run: the run.
    variables: those that are deployed.

  Returns:
    A `Report`.

  Source: ours.
  """
  c = run.config
  return robustness.evaluate(
      run.network, variables, run.dataset.validation, run.keys['evaluate'],
      names=[f'pgd{c.validate.num_steps}'], norm=c.attack.norm,
      epsilon=c.attack.epsilon_255 / 255, step_size=c.attack.step_size_255 / 255,
      batch_size=c.validate.batch_size, has_dummies=False)


def accuracies(run: setup.Run, variables: Variables) -> tuple[float, float]:
  """The clean and the robust accuracy on the validation split.

  Args:
    run: the run.
    variables: those that are deployed.

  Returns:
    Two fractions.

  Source: ours.
  """
  found = report(run, variables).accuracies()
  return found['clean'], found['worst_case']


def score(found: dict[str, Any], choose_by: str) -> float:
  """By how much a checkpoint is the best.

  Args:
    found: `Report.accuracies()` on the validation split.
    choose_by: 'average', robust accuracy, or 'average_and_worst', plus that of the worst class,
      which between neighbouring epochs swings by ten times as much.

  Returns:
    The score; higher is better.

  Example:
    >>> score({'worst_case': .5, 'worst_class': .25}, 'average_and_worst')
    0.75

  Source: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.3. Its
  released code scores so on the test set.
  """
  return found['worst_case'] + (found['worst_class'] if choose_by == 'average_and_worst' else 0)


def average_if_fair(run: setup.Run, eval_variables: Callable[[step_lib.TrainState], Variables],
                    state: step_lib.TrainState) -> tuple[weight_averaging.FairAverageState, float]:
  """CFA's average after an epoch; its parameters are averaged in if their own worst class is robust.

  Args:
    run: the run.
    eval_variables: from a state to the variables that are evaluated, of `batchnorm`.
    state: at the end of an epoch, on the host.

  Returns:
    The average, on the host, and the robust validation accuracy of the epoch's own worst class.
  """
  o = run.config.optimizer
  own = eval_variables(state._replace(average=()))
  worst = report(run, own).accuracies()['worst_class']
  return weight_averaging.take_in(state.average, own['params'], worst, decay=o.fair_decay,
                                  threshold=o.fair_threshold), worst


def fit(run: setup.Run, variables: Variables) -> tuple[Variables, dict[str, Any] | None]:
  """Fits a change of the deployed logits, `config.inference`, that raises the worst class.

  In each round PGD attacks the model as changed so far, and `inference.favour` changes it by what
  stood. Of all rounds, the first of them without a change, the one with the highest worst class is
  kept, of several that with the highest average.

  Args:
    run: the run.
    variables: those to deploy.

  Returns:
    The variables with the change, and the numbers before and after on the validation split; the
    variables as they were and None for the kind 'none'.

  Source: ours.
  """
  c = run.config.inference
  if c.kind == 'none':
    return variables, None
  by_class = logit_adjustment.no_change(run.dataset.num_classes)
  rounds = []
  for _ in range(c.rounds + 1):
    found = report(run, variables | {logit_adjustment.NAME: by_class})
    rounds.append((by_class, found.accuracies()))
    stood = found.by_class(found.worst_case)
    by_class = logit_adjustment.favour(by_class, stood, kind=c.kind, rate=c.rate)
  quality = lambda n: (rounds[n][1]['worst_class'], rounds[n][1]['worst_case'], -n)
  best = max(range(len(rounds)), key=quality)
  by_class, after = rounds[best]
  numbers = lambda found: {name: found[name]
                           for name in ('clean', 'worst_case', 'worst_class', 'by_class')}
  told = {'round': best, **{name: values.tolist() for name, values in by_class.items()},
          'validation': {'before': numbers(rounds[0][1]), 'after': numbers(after)}}
  return variables | {logit_adjustment.NAME: by_class}, told

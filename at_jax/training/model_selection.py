"""Uses the validation split to choose the best checkpoint, CFA's average and the logit adjustment.

In each case PGD attacks the deployed model on the validation split, with the radius of training and the
number of steps of `config.validate`. `single_step_accuracy` is the comparison that shows catastrophic
overfitting.
"""

from collections.abc import Callable
from typing import Any

from at_jax.evaluation import robustness
from at_jax.methods import fgsm_rs, weight_averaging
from at_jax.models import logit_adjustment
from at_jax.training import setup
from at_jax.training import step as step_lib

Variables = dict[str, Any]


def report(run: setup.Run, variables: Variables, **options: Any) -> robustness.Report:
  """Attacks the validation split.

  Args:
    run: the run.
    variables: the deployed variables.
    **options: further options of `robustness.evaluate`, such as `observe`.

  Returns:
    A `robustness.Report`.
  """
  c = run.config
  return _report(run, variables, c.validate.num_steps, c.attack.step_size_255, **options)


def _report(run: setup.Run, variables: Variables, num_steps: int, step_size_255: float, **options: Any
            ) -> robustness.Report:
  c = run.config
  return robustness.evaluate(
      run.network, variables, run.dataset.validation, run.keys['evaluate'], names=[f'pgd{num_steps}'],
      norm=c.attack.norm, epsilon=c.attack.epsilon_255 / 255, step_size=step_size_255 / 255,
      batch_size=c.validate.batch_size, has_dummies=False,
      warn=lambda name, line: None,  # the final evaluation warns; logits of early epochs may be unusual
      **options)


def single_step_accuracy(run: setup.Run, variables: Variables) -> float:
  """Measures accuracy on the validation split under the attack of FGSM-RS, one step of 1.25 ε.

  Args:
    run: the run.
    variables: the deployed variables.

  Returns:
    The accuracy, a fraction. Catastrophic overfitting is a far lower accuracy under PGD.
  """
  step = fgsm_rs.STEP * run.config.attack.epsilon_255
  return _report(run, variables, 1, step).accuracies()['worst_case']


def has_overfitted(single_step: float, robust: float) -> bool:
  """Returns whether a model has overfitted catastrophically, so that it cannot be the best one.

  Args:
    single_step: its accuracy under one step.
    robust: its accuracy under PGD.

  Returns:
    True if they differ by more than .2. The released code of Wong et al. (2020) stops training if the
    accuracy under PGD falls by as much in an epoch.

  Example:
    >>> has_overfitted(.8, .1), has_overfitted(.4, .3)
    (True, False)
  """
  return single_step - robust > .2


def accuracies(run: setup.Run, variables: Variables) -> tuple[float, float]:
  """Measures clean and robust accuracy on the validation split.

  Args:
    run: the run.
    variables: the deployed variables.

  Returns:
    Clean and robust accuracy, as fractions.
  """
  found = report(run, variables).accuracies()
  return found['clean'], found['worst_case']


def score(found: dict[str, Any], choose_by: str) -> float:
  """Scores a checkpoint; the highest score is the best.

  Args:
    found: `Report.accuracies()` on the validation split.
    choose_by: 'average' for robust accuracy; 'average_and_worst' adds that of the worst class, which
      varies about ten times as much between epochs.

  Returns:
    The score.

  Example:
    >>> score({'worst_case': .5, 'worst_class': .25}, 'average_and_worst')
    0.75

  Reference: Wei et al., CFA: Class-wise Calibrated Fair Adversarial Training, 2023, section 4.3. The
  released code scores on the test set.
  """
  return found['worst_case'] + (found['worst_class'] if choose_by == 'average_and_worst' else 0)


def average_if_fair(run: setup.Run, eval_variables: Callable[[step_lib.TrainState], Variables],
                    state: step_lib.TrainState) -> tuple[weight_averaging.FairAverageState, float]:
  """Adds an epoch's parameters to CFA's average if their own worst class is robust enough.

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
  return weight_averaging.add_if_fair(state.average, own['params'], worst, decay=o.fair_decay,
                                  threshold=o.fair_threshold), worst


def fit(run: setup.Run, variables: Variables) -> tuple[Variables, dict[str, Any] | None]:
  """Fits `config.inference`, a change of the deployed logits that raises the worst class.

  In each round PGD attacks the model as changed so far, and `logit_adjustment.update` changes it by the
  robust accuracy of each class. The result is the round with the most robust worst class, and among
  equals with the highest robust accuracy; the first round has no change.

  Args:
    run: the run.
    variables: the variables to deploy.

  Returns:
    The variables with the change, and a summary of the validation accuracies before and after; for the
    kind 'none' the unchanged variables and None.
  """
  c = run.config.inference
  if c.kind == 'none':
    return variables, None
  by_class = logit_adjustment.identity(run.dataset.num_classes)
  rounds = []
  for _ in range(c.rounds + 1):
    found = report(run, variables | {logit_adjustment.COLLECTION: by_class})
    rounds.append((by_class, found.accuracies()))
    robust = found.by_class(found.worst_case)
    by_class = logit_adjustment.update(by_class, robust, kind=c.kind, rate=c.rate)
  quality = lambda n: (rounds[n][1]['worst_class'], rounds[n][1]['worst_case'], -n)
  best = max(range(len(rounds)), key=quality)
  by_class, after = rounds[best]
  numbers = lambda found: {name: found[name]
                           for name in ('clean', 'worst_case', 'worst_class', 'by_class')}
  summary = {'round': best, **{name: values.tolist() for name, values in by_class.items()},
             'validation': {'before': numbers(rounds[0][1]), 'after': numbers(after)}}
  return variables | {logit_adjustment.COLLECTION: by_class}, summary

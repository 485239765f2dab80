"""The evaluation at the end of a run: its best and its last checkpoint under attack on the test set."""

import pathlib
import sys
import time
from typing import Any

import numpy as np

from at_jax import attacks as attacks_lib
from at_jax import devices, environment, errors
from at_jax.attacks.autoattack import multihost
from at_jax.datasets import pipeline
from at_jax.evaluation import autoattack_run, metrics, robustness
from at_jax.training import checkpoints, interrupts, model_selection, networks, records, restore, setup
from at_jax.training import finetune as finetune_lib


def evaluate(run: setup.Run, workdir: pathlib.Path, command: str, seconds: float,
             received: list[int] | None = None) -> dict[str, Any]:
  """Evaluates the best and the last checkpoint on the test set, or only the best of an exported folder.

  Writes results.json and verdicts.npz, and prints `summary`. Several processes call it together; process 0
  writes and prints.

  Args:
    run: the run.
    workdir: its work directory, or a folder written by `restore.export`.
    command: the command line, for results.json.
    seconds: time spent before, for results.json.
    received: the list of `interrupts.watch`; a signal in it ends the evaluation.

  Returns:
    The content of results.json.

  Raises:
    errors.UserError: if no checkpoint can be read, or the work directory is not writable.
    interrupts.Preempted: if a signal was received; the state of AutoAttack is saved.
  """
  begun, received = time.monotonic(), [] if received is None else received
  found = restore.weights(run, workdir, 'last', 'best', keep=run.config.checkpoint.keep)
  if not found:
    raise errors.UserError('workdir', str(workdir), 'none of its checkpoints can be read: train '
                           'again in another folder')
  best, last = found['best'], found.get('last')
  split, which = _split(run)
  try:
    tested = {'last': _test(run, last, 'last', split, workdir, received)} if last else {}
    for weights in found.values():
      restore.store_statistics(workdir, weights)
    tested['best'] = tested['last'] if best is last else _test(run, best, 'best', split, workdir, received)
  except OSError as error:  # from the state of a long attack
    raise errors.unwritable(workdir, error) from error
  numbers = {name: accuracies for name, (accuracies, _) in tested.items()}
  results = {
      'config': run.config.to_dict(), 'dataset': run.dataset.name, 'seed': run.config.seed, 'examples': which,
      **numbers.pop('best'), **numbers, 'device': records.device(),
      'versions': records.versions(), 'command': command,
      'seconds': seconds + time.monotonic() - begun,
  }
  if not devices.is_first():
    return results
  reports = {name: report for name, (_, report) in tested.items()}
  records.write_verdicts(workdir, split.labels,
                         {name: report.verdicts() for name, report in reports.items()})
  if run.config.loss == 'finetune':
    info = (last or best).info
    curve = finetune_lib.report(run, workdir, info['start_clean'], info['start_robust'])
    if curve:  # empty before fine-tuning begins
      results['finetune'] = curve
  records.write_json(workdir / 'results.json', results)
  _remove_states(workdir / 'evaluation', [p for report in reports.values() for p in report.states])
  environment.log(summary(results, workdir), sys.stdout)
  return results


def summary(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """Summarises a run in at most eight lines: accuracies, and which of them to report.

  Args:
    results: content of results.json.
    workdir: where it is.

  Returns:
    Lines of text.
  """
  of = lambda found: ', '.join(f'{name} {_percent(share)}' for name, share in found.items())
  robust, released, worst = results['robust'], results['released'], _percent(results['worst_case'])
  attacks = robust | {f'{name}, released protocol': share for name, share in released.items()}
  strongest = min(attacks, key=attacks.get, default=None)
  rows = {'clean': _percent(results['clean']), 'released protocol': of(released),
          'deployed worst case': worst}
  if strongest:
    name = f'{strongest} with its audit' if strongest in results.get('audits', {}) else strongest
    rows['deployed worst case'] += f'; strongest attack: {name}, {_percent(attacks[strongest])} alone'
  if 'inference' in results:
    plain = results['inference']['as_trained']
    rows['as trained'] = of({name: plain[name] for name in ('clean', 'worst_case')})
  if 'finetune' in results:
    rows['operating point'] = finetune_lib.summary(results['finetune'])
  warnings = {name: len(lines) for name, lines in results['warnings'].items() if lines}
  rows['warnings'] = ', '.join(f'{count} on {name}' for name, count in warnings.items())
  return '\n'.join([
      f"{results['dataset']}, {results['n']} test examples, seed {results['seed']}, best checkpoint (step "
      f"{results['step']}); details: {workdir / 'results.json'}",
      *(f'  {name:21}{text}' for name, text in rows.items() if text), recommendation(results)])


def recommendation(results: dict[str, Any]) -> str:
  """Says which number of a run to report.

  Args:
    results: content of results.json.

  Returns:
    One sentence; one more for each audit.
  """
  robust, released, c = results['robust'], results['released'], results['config']['evaluate']
  attacks, audits = {*robust, *released}, results.get('audits', {})
  ball = f'{metrics.norm_name(c["norm"])} {c["epsilon_255"]:g}/255'
  worst = f'{_percent(results["worst_case"])}, the deployed worst case within {ball}'
  found = '. '.join(str(attacks_lib.Audit(**numbers)) for numbers in audits.values())
  if found and results['examples'] != 'all':
    found += f'; the sampling of the {results["n"]} test examples is not included'
  report = f'Report {worst}'
  if not attacks:
    report = f'No attack was run: report {_percent(results["clean"])} as clean accuracy only'
  elif found and 'autoattack' not in robust:
    report, found = 'Report the interval', f'{found}. All attacks leave at most {worst}'
  if released:
    report += ', and not the released protocol, whose attacks use logits that do not decide'
  if attacks and not any(name.startswith('autoattack') for name in attacks):
    report += '; AutoAttack was not run'
  if 'autoattack_fast' in robust and 'autoattack' not in robust and not audits:
    report += '; autoattack_fast was not audited'
  return f'{report}. {found}.' if found else f'{report}.'


def _percent(share: float) -> str:
  return f'{100 * share:.2f} %'


def _split(run: setup.Run) -> tuple[pipeline.Split, str]:
  """The test examples that are attacked, and which they are: 'all', 'first' or 'stratified'."""
  split, which = pipeline.subset(run.dataset.test, run.config.evaluate.num_examples)
  n, num_classes = len(split.labels), run.dataset.num_classes
  if which == 'stratified':
    records.log(f'config.evaluate.num_examples = {n}: the first {n} test examples have other classes than a '
                f'random draw of all (sorted by class?), so a fixed stratified subset of {n} is evaluated')
  absent = num_classes - len(np.unique(split.labels))
  if absent:
    records.warn(f'{absent} of {num_classes} classes have no example among the {n} that are evaluated: '
                 'worst_class is the worst of the others')
  return split, which


def _test(run: setup.Run, weights: checkpoints.Weights, title: str, split: pipeline.Split,
          workdir: pathlib.Path, received: list[int]) -> tuple[dict[str, Any], robustness.Report]:
  """Accuracies and verdicts of the deployed model; without `config.inference` as 'as_trained'."""
  accuracies = {'step': weights.step, 'validation_robust': weights.info.get('validation_robust')}
  adjusted, fitted = model_selection.fit(run, weights.variables)
  report = _attacked(run, adjusted, f'{title} checkpoint', split, workdir, received)
  accuracies |= report.accuracies()
  if fitted is not None:
    plain = _attacked(run, weights.variables, f'{title} checkpoint as trained', split, workdir, received)
    accuracies['inference'] = fitted | {'as_trained': plain.accuracies()}
    report = report._replace(states=report.states + plain.states)
  return accuracies, report


def _attacked(run: setup.Run, variables: dict[str, Any], title: str, split: pipeline.Split,
              workdir: pathlib.Path, received: list[int]) -> robustness.Report:
  c = run.config
  bars: dict[str, records.Progress] = {}
  where = ''

  def progress(name: str, done: int, total: int, accuracy: float) -> None:
    nonlocal where
    where = f'in the evaluation ({title}, {name})'
    # In AutoAttack each process has a pace of its own.
    stopped = received if autoattack_run.RUNS in name else interrupts.agree(received)
    if name not in bars:  # an attack or a restart begins
      bars[name] = records.Progress(f'{title}, {name}', total) if devices.is_first() else records.Silent()
    if done:
      bars[name].show(done, f'accuracy {accuracy:.3f}')
    if done == total or stopped:
      bars.pop(name).close()
    interrupts.check(stopped, where)

  try:
    return robustness.evaluate(
        run.network, variables, split, run.keys['evaluate'], names=c.evaluate.attacks,
        norm=c.evaluate.norm, epsilon=c.evaluate.epsilon_255 / 255,
        step_size=c.evaluate.step_size_255 / 255, batch_size=c.evaluate.batch_size,
        search=networks.for_search(run.config),
        has_dummies=c.dummy.enabled, audit=c.evaluate.audit, state_dir=workdir / 'evaluation',
        progress=progress,
        warn=lambda name, line: records.warn(f'{title}, {name}: {line}'))
  except (errors.UserError, OSError, interrupts.Preempted) as error:
    agreed = interrupts.agree(received)  # with several processes, a signal to one ends AutoAttack in all
    if isinstance(error.__cause__, multihost.OtherProcessFailed):
      interrupts.check(agreed, where)
    raise


def _remove_states(directory: pathlib.Path, states: list[pathlib.Path]) -> None:
  """Removes the state files of this evaluation, of all processes; those of other settings stay."""
  for state in states:
    for path in directory.glob(f'{state.name}*'):
      path.unlink()
  if directory.is_dir() and not any(directory.iterdir()):
    directory.rmdir()

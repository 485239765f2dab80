"""The end of a run: its best and its last checkpoint are attacked on the test set."""

import pathlib
import time
from typing import Any

import jax

from at_jax import errors
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.training import batchnorm, checkpoints, model_selection, records, setup
from at_jax.training import finetune as finetune_lib


def evaluate(run: setup.Run, workdir: pathlib.Path, store: checkpoints.Checkpoints, command: str,
             seconds: float) -> dict[str, Any]:
  """Evaluates best and last on the test set, writes results.json and verdicts.npz, prints the table.

  Args:
    run: the run.
    workdir: its work directory.
    store: its checkpoints.
    command: the command line, for results.json.
    seconds: what was spent before.

  Returns:
    What results.json holds.

  Raises:
    errors.UserError: no checkpoint can be read, or the work directory is not writable.

  Source: ours.
  """
  begun = time.monotonic()
  template = jax.device_get(setup.init_state(run))
  last = checkpoints.report_damage(store.newest(template))
  best = checkpoints.report_damage(store.best(template)) or last
  if last is None:
    raise errors.UserError('workdir', str(workdir), 'none of its checkpoints can be read: train '
                           'again in another folder')
  settle = batchnorm.reestimate_batchnorm(run)
  try:
    tested = {'last': _test(run, last, settle(last.state), 'last', workdir)}
    tested['best'] = (tested['last'] if best.step == last.step
                      else _test(run, best, settle(best.state), 'best', workdir))
  except OSError as error:  # from the state of a long attack
    raise records.unwritable(workdir, error) from error
  numbers = {name: told for name, (told, _) in tested.items()}
  results = {
      'config': run.config.to_dict(), 'dataset': run.dataset.name, 'seed': run.config.seed,
      **numbers['best'], 'last': numbers['last'], 'device': records.device(),
      'versions': records.versions(), 'command': command,
      'seconds': seconds + time.monotonic() - begun,
  }
  reports = {name: report for name, (_, report) in tested.items()}
  labels = run.dataset.test.labels[:tested['best'][0]['n']]
  records.write_verdicts(workdir, labels,
                         {name: report.verdicts() for name, report in reports.items()})
  if run.config.loss == 'finetune':
    told = finetune_lib.report(run, workdir, last.state.tuning)
    if told:  # none if fine-tuning has not begun
      results['finetune'] = told
      print(finetune_lib.table(told))
  records.write_json(workdir / 'results.json', results)
  _remove_states(workdir / 'evaluation', [p for report in reports.values() for p in report.states])
  print(records.table(results))
  return results


def _test(run: setup.Run, saved: checkpoints.Saved, variables: dict[str, Any], title: str,
          workdir: pathlib.Path) -> tuple[dict[str, Any], robustness.Report]:
  """The accuracies of a checkpoint, as these variables, and the verdicts that they sum up.

  Where a change of the logits is fitted, they are those of the changed model, and the accuracies of
  the model as it was trained stand beside.
  """
  told = {'step': saved.step, 'validation_robust': saved.info.get('validation_robust')}
  changed, fitted = model_selection.fit(run, variables)
  report = _attacked(run, changed, f'{title} checkpoint', workdir)
  told |= report.accuracies()
  if fitted is not None:
    plain = _attacked(run, variables, f'{title} checkpoint as trained', workdir)
    told['inference'] = fitted | {'as_trained': plain.accuracies()}
    report = report._replace(states=report.states + plain.states)
  return told, report


def _attacked(run: setup.Run, variables: dict[str, Any], title: str,
              workdir: pathlib.Path) -> robustness.Report:
  c = run.config
  n = c.evaluate.num_examples or len(run.dataset.test.labels)
  split = pipeline.Split(run.dataset.test.images[:n], run.dataset.test.labels[:n])
  bars: dict[str, records.Progress] = {}

  def progress(name: str, done: int, total: int, standing: float) -> None:
    if done == 0:  # an attack, or a restart of it, begins
      bars[name] = records.Progress(f'{title}, {name}', total)
      return
    bars[name].show(done, f'accuracy {standing:.3f}')
    if done == total:
      bars[name].close()

  return robustness.evaluate(
      run.network, variables, split, run.keys['evaluate'], names=c.evaluate.attacks,
      norm=c.evaluate.norm, epsilon=c.evaluate.epsilon_255 / 255,
      step_size=c.evaluate.step_size_255 / 255, batch_size=c.evaluate.batch_size,
      search=setup.search_network(run),
      has_dummies=c.dummy.enabled, state_dir=workdir / 'evaluation', progress=progress,
      warn=lambda name, line: records.warn(f'{title}, {name}: {line}'))


def _remove_states(directory: pathlib.Path, states: list[pathlib.Path]) -> None:
  """Removes the states of what is finished; those of evaluations with other settings stay."""
  for path in states:
    path.unlink(missing_ok=True)
  if directory.is_dir() and not any(directory.iterdir()):
    directory.rmdir()

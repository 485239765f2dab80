"""The restored model of a run is the one that its results are about, also after an export."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from at_jax import errors, main
from at_jax.datasets import pipeline
from at_jax.models import logit_adjustment
from at_jax.training import checkpoints, loop, restore, setup

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run with dummy classes, averaged weights and a fitted logit adjustment."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  fields = {'inference.kind': 'bias', 'inference.rounds': 2, 'optimizer.ema_decay': .9, 'epochs': 4,
            'dummy.start_epoch': 0, 'batch_size': 173, 'dataset.validation_size': 100,
            'evaluate.num_examples': 397, 'attack.epsilon_255': 8., 'attack.step_size_255': 8.}
  assert main.main([f'--config={CONFIG}:smoke', f'--workdir={path}',
                    *(f'--config.{name}={value}' for name, value in fields.items())]) == 0
  return path


@pytest.mark.parametrize('checkpoint', ['best', 'last'])
def test_predictions_are_those_of_the_evaluation(workdir, checkpoint):
  run, model = restore.load(workdir, checkpoint=checkpoint)
  verdicts = np.load(workdir / 'verdicts.npz')
  logits = np.asarray(model(pipeline.to_unit(run.dataset.test.images)))
  assert logits.shape == (397, run.dataset.num_classes)
  np.testing.assert_array_equal(logits.argmax(-1) == verdicts['labels'],
                                verdicts[f'{checkpoint}/clean'])
  assert verdicts[f'{checkpoint}/clean'].mean() > .12  # chance is .1
  results = json.loads((workdir / 'results.json').read_text())
  assert results['examples'] == 'all' and results['n'] == 397
  fitted = (results if checkpoint == 'best' else results['last'])['inference']
  np.testing.assert_allclose(model.args[0][logit_adjustment.COLLECTION]['bias'], fitted['bias'], rtol=1e-6)
  # The weights are the averaged ones, not those of the last step.
  raw = checkpoints.Checkpoints(workdir / 'checkpoints').newest(
      jax.device_get(setup.init_state(run)))[0].state.params
  assert checkpoint == 'best' or any(
      np.abs(a - b).max() > 1e-3
      for a, b in zip(*map(jax.tree.leaves, (raw, model.args[0]['params'])), strict=True))


def test_step_is_the_checkpoint_of_its_name(workdir):
  run, best = restore.load(workdir)
  results = json.loads((workdir / 'results.json').read_text())
  steps = restore.steps(workdir)
  assert {results['step'], results['last']['step']} <= set(steps)
  for step, model in ((results['step'], best), (steps[-1], restore.deployed(run, workdir, 'last'))):
    found = restore.deployed(run, workdir, step)
    assert found.func is best.func  # which shares what it has compiled
    jax.tree.map(np.testing.assert_array_equal, found.args[0], model.args[0])
  with pytest.raises(errors.UserError, match=r'checkpoint = 1: .* has none of this step: use one of '):
    restore.load(workdir, checkpoint=1)


@pytest.fixture
def without_data(monkeypatch):
  """Reading any data set is an error of one line, as on a machine without them."""
  def read(*args, **kwargs):
    raise errors.UserError('dataset', 'absent', 'no such file: check the path')
  for reader in ('load', 'from_arrays'):
    monkeypatch.setattr(pipeline, reader, read)


@pytest.mark.parametrize('checkpoint', ['best', 'last'])
def test_model_does_not_need_the_data(workdir, checkpoint, request):
  run, model = restore.load(workdir, checkpoint=checkpoint)
  x = pipeline.to_unit(run.dataset.test.images[:16])
  request.getfixturevalue('without_data')
  absent, again = restore.load(workdir, checkpoint=checkpoint)
  np.testing.assert_array_equal(again(x), model(x))
  assert absent.dataset.image_shape == (8, 8, 1) and absent.dataset.num_classes == 10
  assert absent.steps_per_epoch == run.steps_per_epoch == 1300 // 173  # 100 of 1,400 are held out
  with pytest.raises(errors.UserError, match=r"config\.dataset\.name = 'absent': no such file") as caught:
    absent.dataset.test  # noqa: B018
  assert '\n' not in str(caught.value)


def test_model_does_not_need_the_modules_of_training(workdir, tmp_path):
  run, model = restore.load(workdir)
  x = pipeline.to_unit(run.dataset.test.images[:16])
  stored = json.loads((workdir / 'config.json').read_text())
  stored['loss'] = stored['dataset']['name'] = 'absent_module.function'
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  for name in ('checkpoints', 'statistics', 'results.json'):
    (tmp_path / name).symlink_to(workdir / name)
  absent, again = restore.load(tmp_path)
  np.testing.assert_array_equal(again(x), model(x))
  with pytest.raises(errors.UserError, match="dataset.name = 'absent_module.function': cannot be imported"):
    absent.dataset.train  # noqa: B018


def test_adjustment_that_was_not_evaluated_needs_the_data(workdir, tmp_path, without_data):
  (tmp_path / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  with pytest.raises(errors.UserError, match='The data are needed: they give the BatchNorm statistics'):
    restore.load(tmp_path)
  (tmp_path / 'statistics').symlink_to(workdir / 'statistics')
  with pytest.raises(errors.UserError, match='The data are needed: the logit adjustment is fitted on them'):
    restore.load(tmp_path)


def test_adjustment_of_the_last_evaluation_is_deployed(workdir, tmp_path):
  # The run was trained and evaluated with a bias; its last evaluation may leave that out, or the reverse.
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'results.json'
  results = json.loads(path.read_text())
  _, fitted = restore.load(tmp_path / 'run')
  path.write_text(json.dumps({name: value for name, value in results.items() if name != 'inference'}))
  _, plain = restore.load(tmp_path / 'run')
  assert logit_adjustment.COLLECTION not in plain.args[0]
  path.write_text(json.dumps(results))
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  stored['inference']['kind'] = 'none'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(stored))
  _, again = restore.load(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, again.args[0], fitted.args[0])


def test_results_of_another_checkpoint_are_not_exported(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'results.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'step': 1}))
  with pytest.raises(errors.UserError, match='results.json is of another checkpoint: evaluate the run again'):
    restore.export(tmp_path / 'run', tmp_path / 'copy')


@pytest.mark.parametrize('text', ['{"architectures": ["ViT"]}', '{"model": {}, "dataset": "cifar10"}', '[]'])
def test_config_json_of_another_program_is_one_line(text, tmp_path):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match='its config.json is not of a run of at_jax'):
    restore.load(tmp_path)


def test_statistics_of_other_parameters_are_not_used(workdir):
  run, _ = restore.load(workdir)
  saved, _ = checkpoints.Checkpoints(workdir / 'checkpoints').newest(
      jax.device_get(setup.init_state(run)))
  found = restore.weights(run, workdir, 'last')['last'].variables
  stored = lambda params: restore._stored_statistics(workdir, saved, params)
  jax.tree.map(np.testing.assert_array_equal, stored(found['params']), found['batch_stats'])
  assert stored(jax.tree.map(lambda leaf: leaf + np.float32(.5), found['params'])) is None


def test_rows_of_results_are_models_without_data(without_data):
  row = CONFIG.parents[1] / 'results' / 'small_cifar10' / 'pgd_at_cifar10-0'  # CIFAR-10 is not stored there
  run, model = restore.load(row)
  logits = np.asarray(model(np.full((2, 32, 32, 3), .5, np.float32)))
  assert logits.shape == (2, 10) and np.isfinite(logits).all()
  # 49,000 of 50,000 images in batches of 128 (Krizhevsky, 2009, and configs/pgd_at_cifar10.py)
  assert run.dataset.train_size == 49000 and run.steps_per_epoch == 382


def test_other_data_than_those_of_the_run_are_refused(workdir, monkeypatch):
  run, _ = restore.load(workdir)
  digits = pipeline.load('digits', validation_size=200)
  monkeypatch.setattr(pipeline, 'load', lambda *args, **kwargs: digits)
  with pytest.raises(errors.UserError, match='not the data of the run: .* 1200 train.* had .* 1300 train'):
    run.dataset.train  # noqa: B018
  with pytest.raises(errors.UserError, match=r'not the data of the run in .* 1200 training .* had .* 1300'):
    loop._open(run.config, workdir)


def test_a_file_of_another_content_is_refused_when_it_is_read():
  digits = pipeline.load('digits')
  absent = lambda digest: pipeline.DeferredDataset('mine.npz', 10, (8, 8, 1), 1400, lambda: digits, digest)
  assert absent('').test is digits.test  # a run of an earlier version has no digest
  with pytest.raises(errors.UserError, match="name = 'mine.npz': these are not .* has another content$"):
    absent('0f').test  # noqa: B018


def test_evaluation_without_a_checkpoint_reads_no_data(tmp_path, without_data, capsys):
  assert main.main([f'--config={CONFIG}', '--mode=evaluate', f'--workdir={tmp_path}']) == 2
  assert 'there is no checkpoint in it: train first' in capsys.readouterr().err


def test_folder_without_a_run_is_one_line(workdir, tmp_path):
  with pytest.raises(errors.UserError, match='no config.json'):
    restore.load(tmp_path)
  with pytest.raises(ValueError, match="checkpoint = 'newest': use 'best', 'last' or a step"):
    restore.load(workdir, checkpoint='newest')
  (tmp_path / 'config.json').write_text((workdir / 'config.json').read_text())
  with pytest.raises(errors.UserError, match='none of its checkpoints can be read'):
    restore.load(tmp_path)
  renamed = tmp_path / 'lr=[0.1]'
  renamed.mkdir()
  for name in ('checkpoints', 'config.json'):
    (renamed / name).symlink_to(workdir / name)
  evaluate = lambda folder: loop.evaluate_only(restore.read_config(workdir), folder, 'command')
  for use in (restore.load, evaluate):
    with pytest.raises(errors.UserError, match=r'with \[ and \] in its name: name another folder'):
      use(renamed)


def test_wrong_export_is_one_line(workdir, tmp_path):
  with pytest.raises(errors.UserError, match=r'folder = .*: it is the work directory'):
    restore.export(workdir, workdir / '..' / workdir.name)
  for name in ('config.json', 'metrics.jsonl', 'verdicts.npz', 'results.json'):
    with pytest.raises(errors.UserError, match=rf'workdir = .*: there is no {name} in it: finish the run'):
      restore.export(tmp_path, tmp_path / 'row')
    (tmp_path / name).write_bytes((workdir / name).read_bytes())
  (tmp_path / 'file').touch()
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  with pytest.raises(errors.UserError, match=r'workdir = .*file.*: cannot write there'):
    restore.export(tmp_path, tmp_path / 'file')


def test_export_has_the_same_model_and_evaluation(workdir, tmp_path, capsys):
  folder = tmp_path / 'row'
  restore.export(workdir, folder)
  assert {file.name for file in folder.iterdir()} == {
      'config.json', 'metrics.jsonl', 'results.json', 'verdicts.npz', 'weights.npz'}
  run, model = restore.load(workdir)
  x = pipeline.to_unit(run.dataset.test.images[:16])
  np.testing.assert_array_equal(restore.load(folder)[1](x), model(x))
  before = json.loads((folder / 'results.json').read_text())
  config = run.config.copy_and_resolve_references()
  capsys.readouterr()
  loop.evaluate_only(config, folder, 'command')
  after = json.loads((folder / 'results.json').read_text())
  for field in ('clean', 'robust', 'released', 'worst_case', 'n', 'step', 'validation_robust', 'inference'):
    assert before[field] == after[field], field
  # The folder has no last checkpoint.
  assert 'last' in before and 'last' not in after
  assert {name.split('/')[0] for name in np.load(folder / 'verdicts.npz')} == {'labels', 'best'}
  with pytest.raises(errors.UserError, match="checkpoint = 'last': .*best checkpoint only: use 'best'"):
    restore.load(folder, checkpoint='last')
  assert restore.steps(str(folder)) == []
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) <= 8 and 'results.json' in lines[0]
  assert lines[-1].startswith(f"Report {100 * after['worst_case']:.2f} %, the deployed worst case")
  with pytest.raises(errors.UserError, match='training cannot resume'):
    loop.train_and_evaluate(config, folder, 'command')

"""What the README shows runs, and what it names is there."""

import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest

from at_jax import main

pytestmark = pytest.mark.usefixtures('fully_compiled')
README = (pathlib.Path(__file__).parent.parent / 'README.md').read_text(encoding='utf-8')
CODE = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


def test_the_examples_run(capsys):
  # A reader pastes the first, so it must stand alone; the second and the third go on from it.
  names = {}
  # With the defaults AutoAttack takes a minute; there is nothing to read about in that.
  short = CODE[2].replace('batch_size=16', 'batch_size=16, num_steps=3, num_queries=20')
  assert short != CODE[2]
  exec('\n'.join([*CODE[:2], short]), names)
  out = capsys.readouterr().out
  assert out.startswith('robust accuracy') and 'apgd-ce' in out
  assert 0 < names['found'].robust.sum() and names['found'].clean.all()


def test_the_example_of_pytorch_s_weights_runs(monkeypatch):
  # The shapes of TRADES' models/small_cnn.py; PyTorch itself is stood in for.
  names = {f'feature_extractor.conv{i}': shape for i, shape in enumerate(
      [(32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)], 1)}
  names |= {f'classifier.fc{i}': shape for i, shape in enumerate(
      [(200, 1024), (200, 200), (10, 200)], 1)}
  arrays = {f'{name}.weight': np.zeros(shape) for name, shape in names.items()}
  arrays |= {f'{name}.bias': np.full(shape[0], 7.) for name, shape in names.items()}
  torch = types.SimpleNamespace(load=lambda path, map_location: arrays)
  monkeypatch.setitem(sys.modules, 'torch', torch)
  example = {'jax': jax}
  exec(CODE[3], example)
  np.testing.assert_array_equal(example['model'](np.zeros((1, 28, 28, 1))), np.full((1, 10), 7.))


def test_the_example_of_a_run_s_model_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = pathlib.Path(__file__).parent.parent / 'configs' / 'quickstart.py'
  assert main.main([f'--config={config}:smoke', '--workdir=runs/quickstart']) == 0
  capsys.readouterr()
  exec("from at_jax import attacks\n" + CODE[4], {})
  out = capsys.readouterr().out
  assert out.count('True') + out.count('False') == 16


def test_the_method_of_ones_own_trains(tmp_path, monkeypatch, capsys):
  (tmp_path / 'mine.py').write_text(CODE[5])
  (tmp_path / 'mine_cifar10.py').write_text(CODE[6])
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run']) == 0
  assert 'deployed worst case' in capsys.readouterr().out
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run2',
                    '--config.loss=mine.smothed']) == 2
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 1 and 'config.loss' in said[0] and 'mine.smothed' in said[0]


@pytest.mark.parametrize('returned, said', [
    ('.9 * fit', 'it returned'), ('objective.Outcome(fit.mean(), None, logits, batch_stats)', '()')])
def test_a_method_that_returns_something_else_is_named(returned, said, tmp_path, monkeypatch, capsys):
  right = 'objective.Outcome(.9 * fit + .1 * flat, None, logits, batch_stats)'
  assert right in CODE[5]
  (tmp_path / 'other.py').write_text(CODE[5].replace(right, returned))
  (tmp_path / 'other_cifar10.py').write_text(CODE[6].replace('mine', 'other'))
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'other', raising=False)
  assert main.main(['--config=other_cifar10.py:smoke', '--workdir=run']) == 2
  line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith('at_jax: ')]
  assert "config.loss = 'other.smoothed'" in line and said in line


def test_every_config_is_in_the_table():
  configs = (pathlib.Path(__file__).parent.parent / 'configs').glob('*.py')
  named = set(re.findall(r'`(\w+\.py)`', README))
  assert {path.name for path in configs} == named - {'mine.py', 'mine_cifar10.py'}

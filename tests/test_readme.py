"""What the README shows runs, and what it names is there."""

import pathlib
import re

from at_jax import main

README = (pathlib.Path(__file__).parent.parent / 'README.md').read_text(encoding='utf-8')

CODE = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


def test_the_examples_run(capsys):
  # A reader pastes the first, so it must stand alone; the second goes on from it.
  exec('\n'.join(CODE[:2]), {})
  assert capsys.readouterr().out.startswith('robust accuracy')


def test_the_method_of_ones_own_trains(tmp_path, monkeypatch, capsys):
  (tmp_path / 'mine.py').write_text(CODE[2])
  (tmp_path / 'mine_cifar10.py').write_text(CODE[3])
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run']) == 0
  assert 'worst case of all' in capsys.readouterr().out
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run2',
                    '--config.loss=mine.smothed']) == 2
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 1 and 'config.loss' in said[0] and 'mine.smothed' in said[0]


def test_every_config_is_in_the_table():
  configs = (pathlib.Path(__file__).parent.parent / 'configs').glob('*.py')
  named = set(re.findall(r'`(\w+\.py)`', README))
  assert {path.name for path in configs} == named - {'mine.py', 'mine_cifar10.py'}

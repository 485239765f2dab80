"""What the README shows runs, and what it names is there."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / 'README.md').read_text(encoding='utf-8')


def test_the_examples_run(capsys):
  # A reader pastes the first, so it must stand alone; the others go on from it.
  first, *others = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
  exec('\n'.join([first, *others]), {})
  assert capsys.readouterr().out.startswith('robust accuracy')


def test_every_config_is_in_the_table():
  configs = (pathlib.Path(__file__).parent.parent / 'configs').glob('*.py')
  assert {path.name for path in configs} == set(re.findall(r'`(\w+\.py)`', README))

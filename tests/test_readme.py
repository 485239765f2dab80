"""README.md and docs/: every example runs, every command parses, every file they name exists."""

import importlib
import pathlib
import pkgutil
import re
import shlex
import shutil
import sys

import jax
import numpy as np
import pytest

from at_jax import main
from at_jax.analysis import evaluations, table
from at_jax.config import command_line, fields
from at_jax.methods import inner_attacks
from at_jax.training import setup, user_functions

ROOT = pathlib.Path(__file__).parent.parent
_LONG = 'docs/attacks.md', 'docs/numerics.md'
PAGES = ['README.md', *(f'docs/{path.name}' for path in sorted(ROOT.glob('docs/*.md')))]
TEXT = {page: (ROOT / page).read_text(encoding='utf-8') for page in PAGES}
# A block whose first line is '# name.py' is a file of the reader's; the others run in their order.
FILE = re.compile(r'# (\w+\.py)\n')
# Fewer steps compile faster; no statement of a page depends on them.
SHORT = {'batch_size=16)': 'batch_size=16, num_steps=3, num_queries=20)', 'num_steps=10': 'num_steps=3'}


def blocks(page, language='python'):
  found = re.findall(r'^```(\w*)\n(.*?)^```$', TEXT[page], flags=re.DOTALL | re.MULTILINE)
  return [text for name, text in found if name == language]


def files(page):
  return {FILE.match(block)[1]: block for block in blocks(page) if FILE.match(block)}


def code(page):
  text = '\n'.join(block for block in blocks(page) if not FILE.match(block))
  for long, short in SHORT.items():
    text = text.replace(long, short)
  assert 'autoattack(' not in text or 'num_queries=' in text
  return text


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
  """The folder of a run of configs/quickstart.py:smoke."""
  workdir = tmp_path_factory.mktemp('quickstart') / 'run'
  assert main.main([f'--config={ROOT}/configs/quickstart.py:smoke', f'--workdir={workdir}']) == 0
  return workdir


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, from which Python imports."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  for name in ('mine', 'other', 'agree', 'margin_attack'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  return tmp_path


def trades_weights(path, map_location):
  """Stands in for `torch.load`: arrays of the shapes in TRADES' models/small_cnn.py."""
  names = {f'feature_extractor.conv{i}': shape for i, shape in enumerate(
      [(32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)], 1)}
  names |= {f'classifier.fc{i}': shape for i, shape in enumerate(
      [(200, 1024), (200, 200), (10, 200)], 1)}
  arrays = {f'{name}.weight': np.zeros(shape) for name, shape in names.items()}
  return arrays | {f'{name}.bias': np.full(shape[0], 7.) for name, shape in names.items()}


def check_readme(names, out):
  assert out.startswith('robust accuracy') and 'apgd-ce' in out
  assert 0 < names['found'].robust.sum() and names['found'].clean.all()
  assert out.count('True') + out.count('False') == 16  # the last example prints bool[16]


def check_analysis(names, out):
  assert out == '[ 1  0 -1]\n0\nlinf 10.0\nl2 0.1\n'


def check_attacks(names, out):
  assert out.startswith('robust accuracy') and 'apgd-ce' in out and 'square' in out
  assert names['strong'].success.any()
  assert np.all(np.diff(names['curve']) <= 0)
  assert 'probabilities' in names['warnings'][0]
  assert names['found'].clean.all()  # the PyTorch model, on the classes that it predicts
  np.testing.assert_array_equal(names['imported'](np.zeros((1, 28, 28, 1))), np.full((1, 10), 7.))


def check_configs(names, out):
  assert out == '100 8\n'


def check_evaluation(names, out):
  assert out.startswith('[[3. 5.]] [1]\nclean ')
  assert names['worst_case'].sum() <= names['clean'].sum()


def check_extending(names, out):
  assert names['found'].success.any() and names['adaptive'].success.any()


def check_training(names, out):
  assert out.startswith('1300 200 7\n')
  assert names['value'] < np.log(10)  # the loss of the first step, whose logits are 0


def check_numerics(names, out):
  # Compiled without optimizations here; one of the 397 images is .25 points.
  np.testing.assert_allclose(np.float64(out.split()), [65.7, 65.7, 65.7, 66.2, 76.6, 70.5], atol=.6)


@pytest.mark.parametrize('page', [
    pytest.param(page, marks=[pytest.mark.long] * (page in _LONG)) for page in PAGES])
def test_examples_run(page, folder, monkeypatch, capsys, request):
  if 'runs/quickstart' in code(page):
    shutil.copytree(request.getfixturevalue('quickstart'), folder / 'runs' / 'quickstart')
  if 'import torch' in code(page):
    monkeypatch.setattr(pytest.importorskip('torch'), 'load', trades_weights)
  names = {}
  capsys.readouterr()
  exec(code(page), names)
  out = capsys.readouterr().out
  globals()[f'check_{pathlib.Path(page).stem.lower()}'](names, out)


def write(folder, page):
  for name, text in files(page).items():
    (folder / name).write_text(text, encoding='utf-8')


@pytest.mark.parametrize('page', ['README.md', 'docs/extending.md'])
def test_both_pages_have_the_same_method(page):
  assert {'mine.py', 'mine_cifar10.py'} <= files(page).keys()
  assert all(files(page)[name] == files('README.md')[name] for name in files('README.md'))


def test_method_of_ones_own_trains(folder, capsys):
  write(folder, 'README.md')
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run']) == 0
  assert 'worst case' in capsys.readouterr().out
  assert main.main(['--config=mine_cifar10.py:smoke', '--workdir=run2',
                    '--config.loss=mine.smothed']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert 'config.loss' in line and 'mine.smothed' in line


@pytest.mark.long
def test_inner_attack_of_ones_own_trains(folder, capsys):
  write(folder, 'docs/extending.md')
  assert importlib.import_module('agree').trades.inner_attack is inner_attacks.kl
  assert main.main(['--config=agree_cifar10.py:smoke', '--workdir=run',
                    '--config.attack.kind=margin_attack.attack']) == 0
  assert 'worst case' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['tiny_net', 'my_adam'])
def test_network_and_optimizer_of_ones_own_are_accepted(name, folder):
  write(folder, 'docs/extending.md')
  run = setup.build(command_line.parse([f'--config={name}_cifar10.py:smoke']).config)
  user_functions.check(run)
  state = jax.eval_shape(lambda: setup.init_state(run))
  if name == 'tiny_net':
    assert state.params['Conv_0']['kernel'].shape == (3, 3, 1, 32)  # width = 32, as its configuration says
  else:
    assert 'ScaleByAdamState' in str(jax.tree.structure(state.opt_state))


@pytest.mark.parametrize('returned, expected', [
    ('.9 * fit', 'it returned'), ('objective.Outcome(fit.mean(), None, logits, batch_stats)', '()')])
def test_method_with_wrong_output_is_named(returned, expected, folder, capsys):
  right = 'objective.Outcome(.9 * fit + .1 * flat, None, logits, batch_stats)'
  method, config = (files('README.md')[name] for name in ('mine.py', 'mine_cifar10.py'))
  assert right in method
  (folder / 'other.py').write_text(method.replace(right, returned))
  (folder / 'other_cifar10.py').write_text(config.replace('mine', 'other'))
  assert main.main(['--config=other_cifar10.py:smoke', '--workdir=run']) == 2
  line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith('at_jax: ')]
  assert "config.loss = 'other.smoothed'" in line and expected in line


def commands(page):
  """The arguments of each `python -m at_jax.main` that a page shows."""
  for block in blocks(page, language=''):
    for line in block.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      if words[:3] == ['python', '-m', 'at_jax.main'] and not re.search(r'\b(X|FILE)\b', line):
        yield words[3:]


@pytest.mark.parametrize('page', [page for page in PAGES if list(commands(page))])
def test_commands_parse(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  for arguments in commands(page):
    own = [argument for argument in arguments if 'mine_cifar10' in argument]
    assert own or command_line.parse(arguments).mode in ('train', 'evaluate')


def test_readme_is_short():
  assert len(TEXT['README.md'].splitlines()) <= 150
  assert len(TEXT['README.md'].split()) <= 1200


@pytest.mark.parametrize('page', [*PAGES, 'CHANGELOG.md', 'CONTRIBUTING.md'])
def test_linked_files_exist(page):
  text = (ROOT / page).read_text(encoding='utf-8')
  links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)]+)\)', text)
           if not link.startswith('http')]
  links = [(ROOT / page).parent / link for link in links if link]
  if page != 'CHANGELOG.md':  # which names the files of before
    top = 'at_jax|benchmarks|configs|docs|findings|launch|results|tests'
    named = re.findall(rf'`((?:{top})/[\w./]*\w/?)`', text)
    links += [ROOT / name for name in named if not re.search('NAME|PAPER', name)]
  assert links and not [str(path) for path in links if not path.exists()]


@pytest.mark.parametrize('heading', ['Moved modules', 'Renamed functions'])
def test_new_paths_in_changelog_exist(heading):
  section = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8').partition(f'### {heading}\n')[2]
  section = section.partition('\n### ')[0]
  new = [name for line in section.splitlines() if line.startswith('| `')
         for name in re.findall(r'`([\w.]+)`', line.split('|')[2])]
  assert new and all(pkgutil.resolve_name(f'at_jax.{name}') for name in new)


def test_named_tests_exist():
  tests = '\n'.join(path.read_text(encoding='utf-8') for path in ROOT.glob('tests/**/test_*.py'))
  named = set(re.findall(r'`(test_\w+)`', TEXT['docs/numerics.md']))
  assert named and not [name for name in named if f'def {name}(' not in tests]


def test_long_tests_are_listed():
  table_of_long = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').partition('### Long tests')[2]
  listed = set(re.findall(r'^\| `(tests/[\w/]+\.py)`', table_of_long, flags=re.MULTILINE))
  marked = {str(path.relative_to(ROOT)) for path in ROOT.glob('tests/**/test_*.py')
            if 'pytest.mark.long' in path.read_text(encoding='utf-8')}
  assert listed == marked


def test_every_config_is_in_docs():
  rows = [line for line in TEXT['docs/configs.md'].splitlines() if line.startswith('| `')]
  named = {name for row in rows for name in re.findall(r'`(\w+\.py)`', row.split('|')[1])}
  assert {path.name for path in (ROOT / 'configs').glob('*.py')} == named


def test_field_table_is_generated():
  shown = TEXT['docs/configs.md'].partition('<!-- fields: begin')[2].partition('-->\n')[2]
  shown = shown.partition('<!-- fields: end -->')[0]
  assert shown == fields.table() + '\n', 'replace the table by the output of python -m at_jax.config'


def cells(lines):
  return {row[0]: row[1:] for row in
          ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)}


@pytest.fixture(scope='module')
def measured():
  """The cells of the tables of results/small_cifar10 and results/passes_small_cifar10, by row."""
  runs = [evaluations.read(ROOT / 'results' / name) for name in ('small_cifar10', 'passes_small_cifar10')]
  printed = [text for each in runs for text in table.tables(each, against='pgd_at_cifar10').values()]
  return cells('\n'.join(printed).splitlines())


def test_headline_numbers_are_those_of_results(measured):
  shown = cells(line for line in TEXT['README.md'].splitlines() if line.startswith('| `') and '±' in line)
  assert 0 < len(shown) <= 5
  for method, numbers in shown.items():
    assert {number for number in numbers if number} <= set(measured[method])
  recipe, = (line for line in TEXT['README.md'].splitlines() if line.startswith('Our recipe'))
  numbers = re.findall(r'\d+\.\d ± \d+\.\d', recipe)
  assert len(numbers) == 2 and set(numbers) <= set(measured['`at_jax_cifar10`'])


def test_config_headers_have_the_numbers_of_results(measured):
  checked = set()
  for path in ROOT.glob('configs/*.py'):
    header = path.read_text(encoding='utf-8').partition('\nMeasured')[2].partition('"""')[0]
    # A row begins with its variant, ':l2-small, seed 0: clean 60.2, …'; its next lines are indented more.
    for row in re.findall(r'^  :(.*(?:\n    .*)*)', header, flags=re.MULTILINE):
      variant, _, numbers = ' '.join(row.split()).partition(',')
      name = f'`{path.stem}{"-" if variant != "small" else ""}{variant.removesuffix("small").strip("-")}`'
      assert set(re.findall(r'\d+\.\d(?: ± \d+\.\d)?', numbers)) <= set(measured[name]), path
      checked.add(name)
  assert checked == {name for name in measured if name.startswith('`')}

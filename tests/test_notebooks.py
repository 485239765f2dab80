"""The notebooks: valid files without outputs, commands that parse; the long tests execute them.

They are executed with the packages of the interpreter that runs pytest. `bash launch/test.sh --all` does it
with the current ones and with those that Colab ships. For any others, with a Python of at least 3.11:

  PYTHON -m pip install -e '.[all-cpu,dev,torch]' jax==VERSION flax==VERSION
  TFDS_DATA_DIR=FOLDER PYTHON -m pytest -m long tests/test_notebooks.py
"""

import json
import os
import pathlib
import re
import shlex
import sys

import nbclient
import nbformat
import pytest

from at_jax.config import command_line

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
every_notebook = pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def source(path, name):
  """The source of the cell with an id."""
  return next(cell.source for cell in read(path).cells if cell.id == name)


@every_notebook
def test_notebook_is_valid_and_has_no_outputs(path):
  book = json.loads(path.read_text(encoding='utf-8'))
  nbformat.validate(book)
  assert (book['nbformat'], book['nbformat_minor']) == (4, 5)
  assert len({cell['id'] for cell in book['cells']}) == len(book['cells'])
  for cell in book['cells']:
    assert cell['cell_type'] == 'markdown' or not cell['outputs'] and cell['execution_count'] is None


@every_notebook
def test_notebooks_begin_alike(path):
  # A badge for Colab, one parameter, and what installs the package.
  assert 'https://colab.research.google.com/' in source(path, 'title')
  assert source(path, 'size').startswith('SMALL = False')
  assert source(path, 'setup') == source(PATHS[0], 'setup')


@every_notebook
def test_links_of_notebooks_exist(path):
  text = '\n'.join(cell.source for cell in read(path).cells if cell.cell_type == 'markdown')
  links = re.findall(r'\]\((\.\.[^)#]+)', text)
  assert links and not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize('small', [False, True])
def test_commands_of_the_training_notebook_parse(small, monkeypatch):
  path = ROOT / 'notebooks' / 'colab_tpu.ipynb'
  values = {'SMALL': small}
  exec(source(path, 'choose-run'), values)
  monkeypatch.chdir(ROOT)
  modes = []
  for name in ('train-run', 'evaluate-run'):
    words = shlex.split(source(path, name).format(**values).replace('\\\n', ''))
    assert words[:3] == ['!python', '-m', 'at_jax.main']
    asked = command_line.parse(words[3:])
    modes.append(asked.mode)
  assert modes == ['train', 'evaluate']
  assert asked.config.evaluate.audit == values['AUDIT'] > 0
  assert asked.config.evaluate.attacks == ('pgd20', 'autoattack_fast')


def execute(book, folder):
  """Executes a notebook with this interpreter; {id of a cell: its outputs}."""
  here = pathlib.Path(sys.executable).parent
  nbclient.NotebookClient(
      book, timeout=1200, kernel_name='python3', resources={'metadata': {'path': str(folder)}},
  ).execute(env=os.environ | {'PATH': f'{here}{os.pathsep}{os.environ["PATH"]}'})
  return {cell.id: cell.outputs for cell in book.cells if cell.cell_type == 'code'}


def small(name, folder):
  """Executes a notebook of this package with small sizes, in a folder that looks like a checkout."""
  for part in ('at_jax', 'configs', 'results', 'setup.py'):
    (folder / part).symlink_to(ROOT / part)
  (folder / 'notebooks').mkdir()
  book = read(ROOT / 'notebooks' / f'{name}.ipynb')
  size, = (cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', ()))
  size.source = size.source.replace('SMALL = False', 'SMALL = True')
  return execute(book, folder / 'notebooks')


def text(outputs):
  return ''.join(output.text for output in outputs if output.output_type == 'stream')


def shown(outputs, kind):
  """What a cell displays: text/html, text/markdown or image/png."""
  return [output.data[kind] for output in outputs if kind in output.get('data', {})]


def percentages(line):
  return [float(number) for number in re.findall(r'(\d+\.\d) ?%', line)]


@pytest.mark.long
@pytest.mark.oldest
def test_colab_tpu_trains_evaluates_and_reports(tmp_path):
  outputs = small('colab_tpu', tmp_path)
  assert 'validation clean' in text(outputs['train-run'])  # the bar
  assert 'Robust accuracy under fast and AutoAttack is' in text(outputs['evaluate-run'])
  results = json.loads((tmp_path / 'runs' / 'colab' / 'results.json').read_text())
  assert set(results['robust']) == {'pgd20', 'autoattack_fast'} and results['audits']
  page, = shown(outputs['show-report'], 'text/html')
  assert '<html' in page and ('<img' in page or '<svg' in page)


@pytest.mark.long
@pytest.mark.oldest
def test_attack_your_model_prints_intervals(tmp_path):
  pytest.importorskip('torch')
  outputs = small('attack_your_model', tmp_path)
  assert percentages(text(outputs['jax-model']))[0] > 85  # three layers fewer than the quickstart's network
  assert percentages(text(outputs['torch-model']))[0] > 85
  assert text(outputs['check-model']).startswith('()\n') and 'probabilities' in text(outputs['check-model'])
  for pgd, fast in (('run-pgd', 'run-fast'), ('torch-attacks', 'torch-attacks')):
    upper = percentages(text(outputs[pgd]))[0]
    sentence = text(outputs[fast]).splitlines()[-1]
    assert 'survivors audited' in sentence and percentages(sentence)[0] <= upper
  assert shown(outputs['picture'], 'image/png')
  assert 'McNemar' in text(outputs['run-paired'])


@pytest.mark.long
@pytest.mark.oldest
@pytest.mark.skipif(
    not list(pathlib.Path(os.environ.get('TFDS_DATA_DIR', '/nowhere')).glob('cifar10/*/dataset_info.json')),
    reason='needs CIFAR-10 prepared under TFDS_DATA_DIR')
def test_read_a_paper_shows_the_gap(tmp_path):
  outputs = small('read_a_paper', tmp_path)
  assert text(outputs['fold']).split()[:2] == ['decision', '1']
  found, = shown(outputs['show-table'], 'text/markdown')
  assert '`ducat_cifar10`' in found and '29.9 ± 1.8' in found  # results/README.md
  # What the released protocol counts beyond the deployed decision ends at an own dummy.
  clean, released, never, stopped, robust = percentages(text(outputs['count']))
  assert robust + 5 < released <= clean and released - robust <= never + stopped
  assert shown(outputs['draw'], 'image/png') and shown(outputs['report'], 'text/html')


@pytest.mark.long
@pytest.mark.oldest
def test_bar_in_a_notebook_is_one_line(tmp_path):
  cell = nbformat.v4.new_code_cell(
      'import sys\nfrom at_jax.training import records\nprint(sys.executable)\n'
      'progress = records.Progress("training", 10)\nfor done in range(11):\n'
      '  progress.show(done, f"robust {done}")\nprogress.close()', id='bar')
  (tmp_path / 'at_jax').symlink_to(ROOT / 'at_jax')
  outputs = execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)['bar']
  assert f'{sys.executable}\n' in text(outputs)
  if not shown(outputs, 'text/html'):  # without ipywidgets, whose bar is a widget
    line, = [line for line in text(outputs).split('\n') if 'training' in line]
    assert line.rpartition('\r')[2].startswith('training 100%, robust 10 |')

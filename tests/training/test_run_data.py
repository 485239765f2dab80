"""The parts of a run: its data by name or from a loader, checked like a file."""

import sys

import numpy as np
import pytest

from at_jax import config, errors
from at_jax.datasets import pipeline
from at_jax.training import run_data, setup
from tests.fixtures import data_sets

LOADERS = '''
from at_jax import datasets

def halves(options):
  whole = datasets.load('digits')
  few = whole.train.labels < options.num_classes
  return {'train_images': whole.train.images[few], 'train_label': whole.train.labels[few],
          'test_images': whole.test.images[:20] * 0 + 99, 'test_label': whole.test.labels[:20] % 5}

def whole(options):
  return datasets.load('digits')

def pair(options):
  return whole(options).train

def scaled(options):
  found = whole(options)
  return found._replace(test=found.test._replace(images=found.test.images / 255))

number = 3
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
  """Reads the data of a function in `mine_loaders`."""
  (tmp_path / 'mine_loaders.py').write_text(LOADERS)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'mine_loaders', raising=False)

  def read(name, num_classes=10):
    c = config.default()
    c.dataset.update(name=name, num_classes=num_classes, validation_size=100)
    return run_data.read(c)

  return read


def test_loader_gives_the_data(load):
  expected = pipeline.load('digits', validation_size=100)
  found = load('mine_loaders.whole')
  assert found.name == 'mine_loaders.whole' and found.num_classes == 10
  for split in ('train', 'validation', 'test'):
    data_sets.assert_same(getattr(found, split), getattr(expected, split))
  found = load('mine_loaders.halves', num_classes=5)
  assert found.num_classes == 5 and len(found.validation.labels) == 100
  assert set(np.unique(found.train.labels)) == set(range(5))


@pytest.mark.parametrize('name, pattern', [
    ('mine_loaders.pair', 'returns Split: return a dictionary with train_images'),
    ('mine_loaders.scaled', r'test_images is float64 in 0\.\.1: store uint8 pixels'),
    ('mine_loaders.number', 'is of type int, not a function'),
    ('mine_loaders.absent', 'cannot be imported'),
    ('absent_module.loader', 'cannot be imported'),
])
def test_loader_that_gives_no_data_is_one_line(load, name, pattern):
  with pytest.raises(errors.UserError, match=rf"config\.dataset\.name = '{name}': .*{pattern}") as caught:
    load(name)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['digits', 'mine_loaders.whole'])
def test_dropped_class_needs_one_class_fewer(name, load):
  c = config.default()
  c.dataset.update(name=name, drop_class=3, validation_size=100)
  found = run_data.read(c)
  data_sets.assert_same(found.test, pipeline.load('digits', drop_class=3).test)
  with pytest.raises(errors.UserError, match='config.dataset.num_classes = 10: .* has 9 classes: use that'):
    setup.assemble(c, found)
  c.dataset.drop_class = 10
  with pytest.raises(errors.UserError, match='config.dataset.drop_class = 10: use a class from 0 to 9'):
    run_data.read(c)


def test_processes_notice_labels_in_another_order():
  data = pipeline.load('digits', validation_size=100)
  moved = data._replace(train=data.train._replace(labels=data.train.labels[::-1]))
  assert run_data.identity(data) == run_data.identity(pipeline.load('digits', validation_size=100))
  assert run_data.identity(data) != run_data.identity(moved)

"""What changes without a class: hand-counted comparisons, the command on tiny runs, messages."""

import json

import numpy as np
import pytest

from at_jax import config
from at_jax.analysis import runs, without_class
from tests.fixtures import evaluated_runs, tiny_data


def analyse(*arguments):
  return without_class.main([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Untrained runs of all three classes and without class 1."""
  folder = tmp_path_factory.mktemp('runs')
  made = []
  for name, change in ('all-0', {'num_classes': 3}), ('without-0', {'num_classes': 2, 'drop_class': 1}):
    c = config.default()
    c.dataset.update(name=tiny_data.path(60), validation_size=0, **change)
    c.model.update(name='SmallCNN', features=(2, 2), hidden=(), padding='SAME', stem_stride=2)
    c.batch_size, c.evaluate.batch_size = 2, 20
    c.evaluate.epsilon_255 = c.evaluate.step_size_255 = 40.
    made.append(evaluated_runs.untrained(folder / name, c))
  return made


def test_comparison_is_counted_by_hand():
  labels = np.array([0, 0, 0, 0, 2, 2, 2, 2])
  clean = np.array([0, 0, 0, 0, 2, 2, 2, 0])
  found = {'all classes': {'clean': clean, 'attacked': np.array([0, 1, 1, 2, 2, 2, 1, 0])},
           'masked': {'clean': clean, 'attacked': np.array([0, 0, 2, 2, 2, 2, 0, 0])},
           'retrained': {'clean': labels, 'attacked': np.array([0, 0, 0, 2, 2, 0, 2, 0])}}
  compared = without_class.compare(labels, found, ('a', 'b', 'c'), 1)
  a, c, every = (compared['classes'][name] for name in ('a', 'c', 'all'))
  assert list(compared['classes']) == ['a', 'c', 'all'] and compared['left_out'] == 'b'
  assert a['robust'] == {'all classes': .25, 'masked': .5, 'retrained': .75}
  assert c['clean'] == {'all classes': .75, 'masked': .75, 'retrained': 1.}
  assert a['to_it'] == pytest.approx(2 / 3) and c['to_it'] == .5 and every['to_it'] == pytest.approx(3 / 5)
  # Only the retrained model is right on three examples, only that of all classes on one: p = 2 · 5/16.
  assert every['against']['all classes'] == {'gained': 3, 'lost': 1, 'p': pytest.approx(.625)}
  # Three examples are attacked to b, one to another class; the last is misclassified clean.
  retrained = compared['fooled']['retrained']
  assert retrained['it'] == {'n': 3, 'robust': 1.} and retrained['another'] == {'n': 1, 'robust': 0.}
  assert retrained['p'] == pytest.approx(1 / 4)  # hypergeometric: the one of four that is not robust
  assert compared['fooled']['masked']['it']['robust'] == pytest.approx(1 / 3)
  text = without_class.report(compared, 'title')
  assert '| all | 8 | 87.5 | 87.5 | 100.0 | 37.5 | 50.0 | 62.5 | +3 −1, p = 0.6 |' in text
  assert '| retrained | 3 | 100.0 | 1 | 0.0 | 0.2 |' in text


def test_masked_model_loses_one_logit_only(folders):
  model = runs.trained(folders[0], {})
  logits = runs.clean_logits(model, np.ones(60, bool))
  changed = runs.clean_logits(without_class.masked(model, 1), np.ones(60, bool))
  assert (changed[:, 1] == -np.inf).all()
  np.testing.assert_array_equal(changed[:, [0, 2]], logits[:, [0, 2]])


def test_three_models_are_compared_on_the_same_images(folders, tmp_path, capsys):
  assert analyse(*folders, '--attack=pgd2', '--output', tmp_path / 'found.json') == 0
  found = json.loads((tmp_path / 'found.json').read_text())
  assert [(name, each['n']) for name, each in found['classes'].items()] == [('0', 20), ('2', 20), ('all', 40)]
  model = runs.trained(folders[1], {})
  np.testing.assert_array_equal(np.bincount(model.split.labels), [20, 20])
  clean = runs.clean(model) == model.split.labels  # its own test set is the same 40 images
  assert found['classes']['all']['clean']['retrained'] == pytest.approx(clean.mean())
  every = found['classes']['all']['clean']
  assert every['masked'] >= every['all classes']  # the class that is masked is no image's
  assert capsys.readouterr().out.startswith(f'## {tiny_data.path(60)}, L∞, 40/255, pgd2, without 1')


@pytest.mark.parametrize('order, arguments, expected', [
    ((0, 0), [], 'name a run with dataset.drop_class'),
    ((1, 1), [], 'name a run of all classes, without dataset.drop_class'),
    ((0, 1), ['--attack=none'], "--attack = 'none': name an attack"),
    ((0, 1), ['--attack=autoattack'], "--attack = 'autoattack': use PGD"),
    ((0, 1), ['--n=-1'], '--n = -1: use a whole number of at least 0'),
    ((0, 1), ['--output=no/such/file'], "--output = 'no/such/file': there is no such folder"),
])
def test_mistake_is_one_line(folders, order, arguments, expected, capsys):
  assert analyse(*(folders[i] for i in order), *arguments) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('at_jax: ') and expected in line

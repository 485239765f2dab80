"""Examples that always fail: counts of files, attacks that are run again, the gallery, messages."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from at_jax.analysis import figures, gallery, hard_examples, over_epochs, runs
from at_jax.training import records
from tests.fixtures import evaluated_runs, tiny_data

RESULTS = pathlib.Path(__file__).parents[2] / 'results' / 'small_cifar10'
ROWS = 'pgd_at_cifar10-0', 'pgd_at_cifar10-1', 'trades_cifar10-0', 'pgd_at_cifar10-l2-0'
THREAT = f'{tiny_data.path(60)}, L∞, 40/255'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  return evaluated_runs.evaluated(folder / 'tiny-0', 'pgd2', name=tiny_data.path(60), num_classes=3)


def analyse(*arguments):
  return hard_examples.main([str(argument) for argument in arguments])


def found_by(path, *arguments):
  """The groups of the JSON file of an analysis."""
  assert analyse(*arguments, '--output', path / 'found.json') == 0
  return json.loads((path / 'found.json').read_text())['groups']


def stored(path, *keys):
  with np.load(path / 'verdicts.npz') as verdicts:
    return [verdicts[key] for key in keys]


def test_numbers_of_committed_runs_are_counts_of_verdicts(tmp_path, capsys):
  groups = found_by(tmp_path, *(RESULTS / row for row in ROWS))
  found = groups['cifar10, L∞, 8/255, 1000 test examples']
  wrong = ~np.array([stored(RESULTS / row, 'best/worst_case')[0] for row in ROWS[:3]])
  assert found['examples'] == np.flatnonzero(wrong.all(axis=0)).tolist()
  assert found['common']['worst case']['always'] == wrong.all(axis=0).mean()
  assert found['common']['worst case']['always_by_chance'] == pytest.approx(wrong.mean(axis=1).prod())
  clean, = stored(RESULTS / ROWS[0], 'best/clean')
  assert found['common']['clean']['highest'] >= 1 - clean.mean() and 'pgd20' in found['common']
  pair = found['pairs'][0]
  assert pair['relation'] == 'seeds of a method'
  assert pair['jaccard'] == (wrong[0] & wrong[1]).sum() / (wrong[0] | wrong[1]).sum()
  assert found['within_methods']['pgd_at_cifar10']['always'] == wrong[:2].all(axis=0).mean()
  assert found['overlap']['methods']['pairs'] == 2
  labels, = stored(RESULTS / ROWS[0], 'labels')
  assert found['always_by_class'][3] == wrong.all(axis=0)[labels == 3].mean()
  # A run alone has no pairs; the L2 run is a group of its own.
  assert groups['cifar10, L2, 128/255, 1000 test examples']['overlap'] == {}
  out = capsys.readouterr().out
  assert out.startswith('## cifar10, L∞, 8/255, 1000 test examples, 3 models of 2 methods')
  assert f'In all models: {wrong.all(axis=0).sum()} of 1000' in out and 'nan' not in out


def test_attack_again_gives_the_verdicts_of_the_evaluation(run, tmp_path):
  found = found_by(tmp_path, run, '--attack=pgd2')[f'{THREAT}, 60 test examples']
  clean, robust = stored(run, 'best/clean', 'best/robust/pgd2')
  assert found['examples'] == np.flatnonzero(~robust).tolist() and 0 < robust.sum() < clean.sum()
  assert found['common']['clean']['always'] == (~clean).mean() and found['fails'] == 'pgd2'


def test_settings_that_older_results_lack_are_those_of_the_run(run, tmp_path):
  path = shutil.copytree(run, tmp_path / 'old-0')
  results = json.loads((path / 'results.json').read_text())
  del results['config']['evaluate']['batch_size']
  records.write_json(path / 'results.json', results)
  assert runs.load(runs.read(path), {}).settings['batch_size'] == 20  # of config.json


def test_training_examples_are_attacked(run, tmp_path):
  # The training set of this data set is its test set, and draws depend on an example's place only.
  found = found_by(tmp_path, run, '--attack=pgd2', '--split=train', '--n=30')
  robust, = stored(run, 'best/robust/pgd2')
  assert found[f'{THREAT}, 30 training examples']['examples'] == np.flatnonzero(~robust[:30]).tolist()


def test_last_checkpoint_is_another_model_of_its_run(tmp_path, capsys):
  path = tmp_path / 'x-0'
  path.mkdir()
  results = json.loads((RESULTS / ROWS[0] / 'results.json').read_text())
  results['last'] = results['last'] | {'step': results['step'] + 1}
  records.write_json(path / 'results.json', results)
  with np.load(RESULTS / ROWS[0] / 'verdicts.npz') as verdicts:
    changed = {key: verdicts[key] for key in verdicts.files}
  changed['last/worst_case'] = np.zeros_like(changed['labels'], bool)
  np.savez(path / 'verdicts.npz', **changed)
  (found,) = found_by(tmp_path, path, RESULTS / ROWS[1], '--checkpoints=last').values()
  assert found['models']['x-0 (last)'] == 1 and len(found['models']) == 3 and found['methods'] == 2
  assert found['overlap']['checkpoints of a run']['pairs'] == 1
  assert f'{ROWS[1]}: its last checkpoint is its best one' in capsys.readouterr().err


def test_examples_are_followed_over_epochs(run, tmp_path, capsys):
  # After the first two epochs the model predicts class 0 and then class 1, and the attack changes nothing.
  path = evaluated_runs.with_epochs(run, tmp_path / 'tiny-0', 0, 1)
  groups = found_by(tmp_path, path, '--attack=pgd2', '--checkpoints=all', '--curves', tmp_path / 'epochs.png')
  labels, robust = stored(run, 'labels', 'best/robust/pgd2')
  found = groups[f'{THREAT}, 60 test examples']
  assert list(found['models']) == [f'tiny-0 (epoch {epoch})' for epoch in (1, 2, 3)]
  share = lambda these: pytest.approx(these.mean())
  assert found['over_epochs'] == {'tiny-0': {
      'epochs': [1, 2, 3],
      'fails': [share(labels != 0), share(labels != 1), share(~robust)],
      'always': [share(labels != 0), share(labels == 2), share(~robust & (labels == 2))],
      'learnt': [share(labels == 0), share(labels == 1), share(robust & (labels == 2))],
      'forgotten': [0, share(labels == 0), share(~robust & (labels != 2))]}}
  assert found['examples'] == np.flatnonzero(~robust & (labels == 2)).tolist()
  assert found['overlap']['checkpoints of a run']['pairs'] == 3
  out, err = capsys.readouterr()
  percent = [f'{100 * each.mean():.1f}' for each in (labels != 1, labels == 2, labels == 1, labels == 0)]
  assert f'| 2 | {" | ".join(percent)} |' in out
  always = (~robust & (labels == 2)).sum()
  assert f'Never robust at 3 checkpoints: {always} of 60 examples, 95 % interval' in out
  assert 'tiny-0: of 130 epochs, 3 checkpoints are stored' in err  # 130 is the default of the configuration
  drawn, = figures.read('', tmp_path)
  assert f'failed after every epoch tiny-0 {100 * always / 60:.1f}.' in drawn.alt


def test_epochs_of_a_short_run_have_whole_numbers():
  found = {'x-0': {'epochs': [1., 2., 3.], 'fails': [.9, .9, .8], 'always': [.9, .8, .7]}}
  axes, = over_epochs.figure('epochs', '', found).figure.axes
  assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_shares_over_epochs_add_up():
  wrong = np.random.default_rng(0).random((5, 40)) < .6
  found = over_epochs.shares(wrong)
  # Each example that does not always fail was learnt once, and one that fails is in one of two groups.
  np.testing.assert_allclose(found.learnt.sum(), 1 - wrong.all(axis=0).mean())
  for i, now in enumerate(wrong):
    before = wrong[:i].all(axis=0)
    assert found.learnt[i] == pytest.approx((~now & before).mean())
    assert found.forgotten[i] == pytest.approx((now & ~before).mean())
    assert found.fails[i] == now.mean() and found.always[i] == (now & before).mean()


def test_attacked_points_are_those_of_the_predictions(run):
  model = runs.load(runs.read(run), {})
  everything = np.ones(60, bool)
  everything[7] = False
  found = runs.attack(model, runs.pgd('pgd2x2'), everything, points=True)
  images = model.split.images[everything] / 255
  assert np.abs(found.x - images).max() == pytest.approx(40 / 255, rel=1e-5)
  logits = jax.jit(model.parts.network.deployed)(model.variables, found.x)
  np.testing.assert_array_equal(np.argmax(logits, axis=-1), found.predictions[everything])
  assert found.predictions[7] == -1
  # What the first restart fools keeps its point.
  once = runs.attack(model, runs.pgd('pgd2'), everything, points=True)
  fooled = (once.predictions != model.split.labels)[everything]
  np.testing.assert_array_equal(found.x[fooled], once.x[fooled])


def test_gallery_shows_images_and_predictions(run, tmp_path, capsys):
  assert analyse(run, '--attack=pgd2', '--gallery', tmp_path / 'hard.png') == 0
  assert (tmp_path / 'hard.png').read_bytes().startswith(b'\x89PNG')
  clean, robust = stored(run, 'best/clean', 'best/robust/pgd2')
  fooled = np.flatnonzero(clean & ~robust)
  model = runs.load(runs.read(run), {})
  drawn = gallery.gallery(model, 'pgd2', ~robust, name='hard', run='tiny-0', models=1)
  assert drawn.caption in capsys.readouterr().err
  assert f'({len(fooled)} of {(~robust).sum()} such images)' in drawn.caption
  # The factor is ⌊.5 / (40/255)⌋ = 3.
  assert 'with the perturbation times 3 on grey.' in drawn.caption
  lines = np.reshape(drawn.figure.axes, (-1, 4))
  shown = [int(part.split()[1].rstrip(':')) for part in drawn.alt.split('; ')]
  assert set(shown) <= set(fooled) and len(shown) == len(lines) == min(6, len(fooled))
  predicted = runs.attack(model, runs.pgd('pgd2'), clean).predictions
  images = model.split.images[shown] / np.float32(255)
  logits = jax.jit(model.parts.network.deployed)(model.variables, images)
  second = np.argsort(logits, axis=-1)[:, -2]
  for line, i, other in zip(lines, shown, second):
    image, change, attacked = (np.asarray(axes.images[0].get_array()) for axes in line[:3])
    np.testing.assert_allclose(image, model.split.images[i, ..., 0] / 255, atol=1e-6)
    np.testing.assert_allclose(change, .5 + 3 * (attacked - image), atol=1e-5)
    label = model.split.labels[i]
    assert line[3].texts[0].get_text() == f'{label} → {predicted[i]}\nnearest: {other}'


def test_model_of_one_class_is_warned_of(tmp_path, capsys):
  assert analyse(RESULTS / 'ducat_mart_cifar10-0') == 0
  assert 'warning: ducat_mart_cifar10-0 is correct on class' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, expected', [
    (['none'], "RUN = 'none': there are no results.json"),
    ([RESULTS / ROWS[0], '--attack=autoattack'], "--attack = 'autoattack': use PGD"),
    ([RESULTS / ROWS[0], '--split=train'], "--split = 'train': there are no verdicts of training examples"),
    ([RESULTS / ROWS[0], '--n=5'], '--n = 5: the test examples are those of the evaluation'),
    ([RESULTS / ROWS[0], '--n=0', '--split=train', '--attack=pgd2'], '--n = 0: use a number'),
    ([RESULTS / ROWS[0], '--gallery=x.png'], "--gallery = 'x.png': it shows attacked images: add"),
    ([RESULTS / ROWS[0], '--gallery=x.pdf', '--attack=pgd2'], "--gallery = 'x.pdf': name a .png file"),
    ([RESULTS / ROWS[0], '--gallery=no/x.png', '--attack=pgd2'], "--gallery = 'no/x.png': there is no such"),
    ([RESULTS / ROWS[0], '--checkpoints=all'], "--checkpoints = 'all': there are verdicts of the best"),
    ([RESULTS / ROWS[0], '--checkpoints=all', '--attack=pgd2'],
     "--checkpoints = 'all': there are no checkpoints in"),
    ([RESULTS / ROWS[0], '--curves=x.png'], "--curves = 'x.png': it shows epochs: add --checkpoints=all"),
    ([RESULTS / ROWS[0], '--output=no/such/file'], "--output = 'no/such/file': there is no such"),
])
def test_mistake_is_one_line(arguments, expected, capsys):
  assert analyse(*arguments) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f'at_jax: {expected}')


def test_runs_of_other_examples_are_refused(tmp_path, capsys):
  other = shutil.copytree(RESULTS / ROWS[0], tmp_path / 'other-0')
  with np.load(other / 'verdicts.npz') as verdicts:
    np.savez(other / 'changed.npz', **{key: verdicts[key][::-1] for key in verdicts.files})
  (other / 'changed.npz').rename(other / 'verdicts.npz')
  assert analyse(RESULTS / ROWS[0], other) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("at_jax: RUN = 'other-0': its examples are not those of pgd_at_cifar10-0")

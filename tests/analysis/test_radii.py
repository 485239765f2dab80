"""Radii of the examples of a run, and the curve that a report draws of them."""

import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, config, datasets, errors
from at_jax.analysis import curves, folders, radii, report, runs
from at_jax.datasets import pipeline
from at_jax.training import checkpoints, loop, records, restore, run_data, setup
from tests.fixtures import run_folders, tiny_data


def test_radii_of_a_linear_model_are_its_distances(tmp_path, monkeypatch):
  # 40 grey images around .5, in batches of 16, and two classes: the L∞ distance of the boundary is
  # margin / ‖w‖₁, and FMN finds it from above.
  rng = np.random.default_rng(0)
  x = rng.uniform(.4, .6, (40, 2, 2, 1)).astype(np.float32)
  w = rng.normal(size=4).astype(np.float32)
  side = (x.reshape(40, 4) - .5) @ w
  logits = lambda w, x: jnp.stack([0 * x[:, 0, 0, 0], (x.reshape(len(x), 4) - .5) @ w], axis=1)
  path = run_folders.evaluated(tmp_path / 'x-0', 8, attacks={'autoattack': 8})
  labels = (side > 0).astype(np.int32)
  labels[:3] = 1 - labels[:3]  # three are misclassified
  np.savez(path / 'verdicts.npz', labels=labels, **{'best/worst_case': np.arange(40) < 8})
  loaded = runs.Model(types.SimpleNamespace(network=types.SimpleNamespace(deployed=logits)), jnp.asarray(w),
                      pipeline.Split(x, labels), ('0', '1'), dict(batch_size=16, norm='linf'))
  monkeypatch.setattr(radii.runs, 'load', lambda found, data, hint: loaded)
  assert radii.main([str(path), f'--output={tmp_path / "new"}', '--steps=50']) == 0
  ratio = np.load(tmp_path / 'new' / 'x-0.npz')['radius'] * np.abs(w).sum() / np.abs(side)
  np.testing.assert_array_equal(ratio[:3], 0)
  assert ratio.shape == (40,) and (ratio[3:] > .999).all() and (ratio[3:] < 1.05).all()


@pytest.mark.long
def test_radii_of_a_run_are_those_of_fmn(tmp_path):
  path = tmp_path / 'tiny-0'
  c = config.default()
  c.dataset.update(name=tiny_data.path(30), num_classes=3, validation_size=0)
  c.model.update(name='SmallCNN', features=(2, 2), hidden=(), padding='SAME', stem_stride=2, batch_norm=True)
  c.batch_size, c.evaluate.batch_size, c.evaluate.attacks = 2, 20, ('pgd2',)
  parts = setup.build(c)
  state = setup.init_state(parts)
  path.mkdir()
  records.write_json(path / 'config.json', c.to_dict())
  checkpoints.write_weights(path / checkpoints.WEIGHTS, checkpoints.Weights(
      0, {'params': state.params, 'batch_stats': state.batch_stats},
      {'data': run_data.info(parts.dataset)}))
  loop.evaluate_only(c, path, '')
  assert radii.main([str(path), f'--output={tmp_path}', '--steps=5']) == 0
  stored = np.load(tmp_path / 'tiny-0.npz')
  parts, model = restore.load(path)
  split = parts.dataset.test
  found = attacks.fmn(model, datasets.to_unit(split.images), split.labels, num_steps=5)
  np.testing.assert_allclose(stored['radius'], found.radius, rtol=1e-4)
  np.testing.assert_array_equal(stored['radius'] > 0, np.load(path / 'verdicts.npz')['best/clean'])


def test_curve_counts_radii_beyond_epsilon(tmp_path):
  # 40 examples: ten misclassified, then ten radii of 4, 8 and 16 of 255 each; ε is 8.
  run_folders.evaluated(tmp_path / 'x-0', 8, attacks={'autoattack': 8})
  found = folders.read([tmp_path])
  radius = np.repeat([0., 4., 8.01, 16.01], 10) / 255
  compared, = report.tables(found, 'x').values()
  drawn = curves.minimum_norm('r', 'L∞', compared, {'x-0': radius})
  # A(0) = 30/40; A(8) = 20/40; A(16) = 10/40; the mean of min(radius, ε)/ε is (0 + ½ + 1 + 1)/4.
  assert 'x-0: 75.0 at 0, 50.0 at ε (worst case 20.0), 25.0 at 2ε, mean over 0 to ε 62.5.' in drawn.alt
  assert 'up to 30.0 points lower (`x`)' in drawn.caption
  assert curves.minimum_norm('r', 'L∞', compared, {}) is None


def test_radii_of_another_evaluation_are_refused(tmp_path, capsys):
  run = run_folders.evaluated(tmp_path / 'runs' / 'x-0', 8, attacks={'autoattack': 8})
  arrays = dict(radius=np.zeros(40), labels=run_folders.LABELS, norm='linf')
  directory = tmp_path / 'radii'
  directory.mkdir()
  for name, changes, expected in (('y-0', {}, 'it has no METHOD-SEED.npz of these runs'),
                                  ('x-0', dict(norm='l2'), 'its norm or examples are not'),
                                  ('x-0', dict(labels=run_folders.LABELS[::-1]), 'its norm or examples')):
    np.savez(directory / f'{name}.npz', **arrays | changes)
    with pytest.raises(errors.UserError, match=expected):
      radii.read(directory, folders.read([run]))
  (directory / 'x-0.npz').write_bytes((directory / 'x-0.npz').read_bytes()[:100])
  with pytest.raises(errors.UserError, match='cannot be read .*: run `python -m at_jax.analysis radii`'):
    radii.read(directory, folders.read([run]))
  np.savez(directory / 'x-0.npz', **arrays)
  assert list(radii.read(directory, folders.read([run]))) == ['x-0']
  shutil.rmtree(directory)
  assert report.main([str(run), f'--output={tmp_path / "r.html"}', f'--radii={directory}']) == 2
  assert radii.main([str(run), '--output=x', '--steps=0']) == 2
  for name in ('results.json', 'verdicts.npz'):
    (run / name).unlink()
  assert radii.main([str(run), f'--output={tmp_path / "none"}']) == 2
  lines = capsys.readouterr().err.splitlines()
  for line, expected in zip(lines, ('--radii = ', '--steps = 0: use a whole number of at least 2',
                                    'none of them was evaluated'), strict=True):
    assert expected in line

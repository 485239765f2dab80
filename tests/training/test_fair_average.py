"""CFA's average of weights in a whole run: logging, resume, and an average that stays empty."""

import json
import pathlib
import shutil

from orbax.checkpoint import v1 as ocp
import pytest

from at_jax import main

ROOT = pathlib.Path(__file__).parents[2]
# Three epochs of three steps on a tiny network with radii by class; every epoch is averaged.
RUN = (f'--config={ROOT}/configs/quickstart.py:smoke', '--config.dummy.enabled=False',
       '--config.calibration.radius=True', '--config.batch_size=460', '--config.epochs=3',
       '--config.checkpoint.every_steps=1', '--config.checkpoint.keep=20',
       '--config.optimizer.fair_decay=.5')


def train(workdir, *arguments):
  assert main.main([*RUN, f'--workdir={workdir}', *arguments]) == 0
  return json.loads((workdir / 'results.json').read_text())


def digests(workdir, step):
  path = workdir / 'checkpoints' / f'{step:08d}'
  return ocp.checkpointables_metadata(path).custom_metadata['digests']


def logged(workdir, field):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [(line['step'], line[field]) for line in lines if field in line]


@pytest.mark.long
def test_fair_average_resumes_with_the_same_bits(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  results = train(whole)
  assert logged(whole, 'averaged') == [(6, 1), (9, 2)]  # from the second epoch on
  assert {'validation_worst_class', 'validation_robust'} <= set((whole / 'metrics.jsonl')
                                                                .read_text().split('"'))
  shutil.copytree(whole, killed)
  for step in (8, 9):
    shutil.rmtree(killed / 'checkpoints' / f'{step:08d}')
  again = train(killed)
  assert digests(killed, 9) == digests(whole, 9)
  assert logged(killed, 'averaged') == [(6, 1), (9, 2)]
  for field in ('clean', 'worst_case', 'by_class', 'last', 'step'):
    assert again[field] == results[field]
  averages = {name: digest for name, digest in digests(whole, 9).items() if 'average' in name}
  before = digests(whole, 8)
  assert averages and all(before[name] != digest for name, digest in averages.items()
                          if 'kernel' in name)


@pytest.mark.long
def test_an_empty_fair_average_changes_no_bit(tmp_path):
  with_average, without = tmp_path / 'with', tmp_path / 'without'
  results = [train(with_average, '--config.optimizer.fair_threshold=1.'),
             train(without, '--config.optimizer.fair_decay=0.')]
  assert logged(with_average, 'averaged') == [(6, 0), (9, 0)]
  kept = {name: digest for name, digest in digests(with_average, 9).items()
          if 'average' not in name}
  assert kept == digests(without, 9)
  for field in ('clean', 'worst_case', 'by_class', 'validation_robust'):
    assert results[0]['last'][field] == results[1]['last'][field]

"""The accuracies of the quickstart on real digits, and our PGD against foolbox's."""

import json
import pathlib

import jax
import numpy as np
import pytest

from at_jax import main
from at_jax.config import command_line
from at_jax.datasets import pipeline
from at_jax.evaluation import robustness
from at_jax.training import loop, setup

pytestmark = pytest.mark.long
CONFIG = f'--config={pathlib.Path(__file__).parent.parent}/configs/quickstart.py'


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  """Work directories of the three runs of the quickstart."""
  folders = {}
  for name in ('', ':standard', ':pgd_at'):
    folders[name] = tmp_path_factory.mktemp('run')
    assert main.main([CONFIG + name, f'--workdir={folders[name]}']) == 0
  return folders


def results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def test_methods_and_protocols_differ(workdirs):
  # Measured values are in the header of configs/quickstart.py; the bounds leave 2 to 10 points.
  standard, pgd_at, ducat = (results(workdirs[n]) for n in (':standard', ':pgd_at', ''))
  for found in (standard, pgd_at, ducat):
    assert found['n'] == 397 and found['clean'] >= .93
  assert standard['robust']['pgd20'] <= .1  # a weak attack would leave it higher
  assert pgd_at['robust']['pgd20'] >= .45
  assert ducat['released']['pgd20'] >= pgd_at['robust']['pgd20']
  assert pgd_at['robust']['pgd20'] - ducat['robust']['pgd20'] >= .15
  assert not pgd_at['released'] and ducat['worst_case'] <= ducat['robust']['pgd20']


def test_pgd_agrees_with_foolbox(workdirs):
  # foolbox attacks the same PGD-AT weights in PyTorch with the same radius, step size and number of
  # steps. Both start at random, so the means of ten runs are compared, to one point.
  torch = pytest.importorskip('torch')
  foolbox = pytest.importorskip('foolbox')
  asked = command_line.parse([CONFIG + ':pgd_at', f"--workdir={workdirs[':pgd_at']}"])
  run, store = loop._open(asked.config, asked.workdir)
  saved, _ = store.best(jax.device_get(setup.init_state(run)))
  net = to_torch(saved.state.params, torch).eval()
  test = run.dataset.test
  x = torch.from_numpy(test.images.astype(np.float32) / 255)
  y = torch.from_numpy(test.labels.astype(np.int64))
  variables = {'params': saved.state.params, 'batch_stats': saved.state.batch_stats}
  with torch.no_grad():
    np.testing.assert_allclose(net(x).numpy(),
                               run.network.logits(variables, pipeline.to_unit(test.images)), atol=1e-4)
  attack = foolbox.attacks.LinfPGD(abs_stepsize=.0375, steps=20, random_start=True)
  model = foolbox.PyTorchModel(net, bounds=(0, 1), device='cpu')
  torch.manual_seed(0)
  theirs = np.mean([1 - float(attack(model, x, y, epsilons=.15)[2].float().mean())
                    for _ in range(10)])
  ours = np.mean([
      robustness.evaluate(run.network, variables, test, jax.random.key(seed), names=['pgd20'],
                        norm='linf', epsilon=.15, step_size=.0375, batch_size=397,
                        has_dummies=False).robust['pgd20'].mean() for seed in range(10)])
  assert abs(ours - theirs) <= .01, (ours, theirs)


def to_torch(params, torch):
  """The dense network of the quickstart in PyTorch."""
  layers = [torch.nn.Flatten()]
  for i in range(1, 4):
    dense = torch.nn.Linear(*params[f'fc{i}']['kernel'].shape)
    dense.weight.data = torch.from_numpy(np.array(params[f'fc{i}']['kernel']).T)
    dense.bias.data = torch.from_numpy(np.array(params[f'fc{i}']['bias']))
    layers += [dense] + [torch.nn.ReLU()] * (i < 3)
  return torch.nn.Sequential(*layers)

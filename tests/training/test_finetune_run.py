"""Fine-tuning as a command: resume, start from another run, and report."""

import json
import pathlib
import shutil

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from at_jax import errors, main, models
from at_jax.config import fields as fields_lib
from at_jax.models import dual_batchnorm, importers
from at_jax.training import batchnorm, checkpoints, loop, setup
from at_jax.training import finetune as finetune_lib
from tests.fixtures import finetune_runs, tiny_data

SMOKE = f'--config={pathlib.Path(__file__).parents[2]}/configs/finetune_cifar10.py'


def digests(workdir, step):
  path = workdir / 'checkpoints' / f'{step:08d}'
  return ocp.checkpointables_metadata(path).custom_metadata['digests']


def command(workdir, form='', **fields):
  """A run on the tiny data: 4 epochs of two steps, the first of them clean."""
  c = {'dataset.name': tiny_data.path(24),
       'dataset.num_classes': 3, 'dataset.validation_size': 8,
       'batch_size': 8, 'validate.batch_size': 8, 'evaluate.batch_size': 8, 'epochs': 4,
       'evaluate.num_examples': 8, 'model.width': 2} | fields
  return main.main([f'{SMOKE}:{form}smoke', f'--workdir={workdir}',
                    *(f'--config.{name}={value}' for name, value in c.items())])


@pytest.mark.parametrize('form, stopped', [
    pytest.param('radius-', 2, marks=pytest.mark.long),  # where fine-tuning begins
    pytest.param('controller-dual-', 5, marks=pytest.mark.long),  # in the middle of its second epoch
])
def test_a_resumed_run_has_the_same_bits_and_curve(form, stopped, tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  every = {'checkpoint.every_steps': 1, 'checkpoint.keep': 9}
  assert command(whole, form, **every) == 0
  printed = capsys.readouterr().out
  shutil.copytree(whole, parts)  # as if the run had been killed there
  for step in range(stopped + 1, 9):
    shutil.rmtree(parts / 'checkpoints' / f'{step:08d}')
  (parts / 'results.json').unlink()
  assert command(parts, form, **every) == 0
  assert f'resuming after step {stopped}' in capsys.readouterr().err
  assert digests(whole, 8) == digests(parts, 8)
  assert any('teacher' in leaf for leaf in digests(whole, 8))
  assert any(('radius' if 'radius' in form else 'strength') in leaf for leaf in digests(whole, 8))
  results, again = (json.loads((d / 'results.json').read_text()) for d in (whole, parts))
  summary = results['finetune']
  assert summary == again['finetune']
  assert [point['epoch'] for point in summary['curve']] == [2, 3, 4]
  # The best checkpoint, which is evaluated, is the operating point of the curve.
  assert results['step'] == summary['chosen'] and 'operating point' in printed
  if 'controller' in form:
    lines = map(json.loads, (whole / 'metrics.jsonl').read_text().splitlines())
    strengths = [line['strength'] for line in lines if 'strength' in line]
    kept = [point['clean'] >= summary['start']['clean'] - .005 for point in summary['curve']]
    expected = [.25]
    for one in kept[:-1]:
      expected.append(min(max(expected[-1] + (.25 if one else -.25), 0), 1))
    assert strengths == expected


def source_run(workdir, **fields):
  c = {'loss': 'standard', 'epochs': 2} | fields
  assert command(workdir, **c) == 0


@pytest.fixture(scope='module')
def clean_run(tmp_path_factory):
  """The folder of a clean run."""
  workdir = tmp_path_factory.mktemp('clean') / 'run'
  source_run(workdir)
  return workdir


@pytest.fixture
def source(clean_run, tmp_path):
  """A copy of the folder of a clean run."""
  return shutil.copytree(clean_run, tmp_path / 'source')


@pytest.mark.parametrize('which, average', [
    ('best', 0.), pytest.param('last', .9, marks=pytest.mark.long)])
def test_it_starts_with_the_outputs_of_a_checkpoint(which, average, source, tmp_path):
  if average:
    source = tmp_path / 'averaged'
    source_run(source, **{'optimizer.ema_decay': average})
  # The source, opened as its own evaluation would open it.
  before = fields_lib.default()
  before.model = {}
  summary = json.loads((source / 'config.json').read_text())
  before.update(summary)
  other, store = loop._open(before, source)
  template = jax.device_get(setup.init_state(other))
  saved = (store.best if which == 'best' else store.newest)(template)[0]
  x = np.random.default_rng(0).random((5, 4, 4, 1), np.float32)
  expected = other.network.deployed(batchnorm.reestimate_batchnorm(other)(saved.state), x)
  for kind in ('shared', 'dual'):
    c = before.copy_and_resolve_references()
    c.loss, c.optimizer.ema_decay = 'finetune', 0.
    c.finetune.update(start_epoch=0, source=str(source), checkpoint=which, batch_norm=kind)
    run, eval_variables, validate = finetune_runs.pieces(c)
    state = finetune_lib.start_from(run, setup.init_state(run))
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    np.testing.assert_allclose(run.network.deployed(variables, x), expected, atol=1e-6)
    started = finetune_lib.begin(run, jax.device_get(state), eval_variables, validate)
    np.testing.assert_allclose(run.network.logits(started.tuning.teacher, x), expected, atol=1e-6)
    if kind == 'dual':
      finetune_runs.equal(*(dual_batchnorm.select(started.tuning.teacher, name)
                            for name in dual_batchnorm.BRANCHES))


def test_a_wrong_source_is_one_line(source, tmp_path, capsys):
  begin = {'finetune.start_epoch': 0, 'epochs': 2}

  def message(**fields):
    capsys.readouterr()
    assert command(tmp_path / 'run', **begin, **fields) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('at_jax: config.finetune.source = ')
    assert not (tmp_path / 'run').exists()
    return line

  assert 'no config.json' in message(**{'finetune.source': tmp_path / 'nowhere'})
  assert 'config.model.width is 2 and here it is 3' in message(
      **{'finetune.source': source, 'model.width': 3})
  assert 'config.dataset.validation_size is 8 and here it is 7' in message(
      **{'finetune.source': source, 'dataset.validation_size': 7})
  for checkpoint in (source / 'checkpoints').iterdir():
    checkpoint.rename(checkpoint.with_suffix('.gone'))
  assert 'none of its checkpoints' in message(**{'finetune.source': source})


@pytest.mark.long
def test_a_resumed_run_does_not_need_its_source(source, tmp_path):
  workdir = tmp_path / 'run'
  fields = {'finetune.start_epoch': 0, 'finetune.source': source}
  assert command(workdir, epochs=1, **fields) == 0
  source.rename(tmp_path / 'moved')
  assert command(workdir, epochs=2, **fields) == 0
  store = checkpoints.Checkpoints(workdir / 'checkpoints', keep=1)
  assert store.steps()[-1] == 4


TINY = dict(width=2, stage_sizes=(1, 1))


def tiny_resnet(torch):
  """The ResNet of kuangliu's resnet.py with basic blocks, as small as TINY, and its names."""
  nn = torch.nn

  class Block(nn.Module):

    def __init__(self, c, f, stride):
      super().__init__()
      self.conv1, self.bn1 = nn.Conv2d(c, f, 3, stride, 1, bias=False), nn.BatchNorm2d(f)
      self.conv2, self.bn2 = nn.Conv2d(f, f, 3, 1, 1, bias=False), nn.BatchNorm2d(f)
      self.shortcut = nn.Sequential()
      if stride != 1:
        self.shortcut = nn.Sequential(nn.Conv2d(c, f, 1, stride, bias=False), nn.BatchNorm2d(f))

    def forward(self, x):
      out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
      return torch.relu(out + self.shortcut(x))

  class Net(nn.Module):

    def __init__(self):
      super().__init__()
      self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, 1, 1, bias=False), nn.BatchNorm2d(2)
      self.layer1, self.layer2 = nn.Sequential(Block(2, 2, 1)), nn.Sequential(Block(2, 4, 2))
      self.linear = nn.Linear(4, 3)

    def forward(self, x):
      x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
      return self.linear(x.mean((2, 3)))

  torch.manual_seed(0)
  net = Net()
  for _ in range(3):
    net.train()(torch.rand(16, 1, 4, 4))  # so that the running statistics are not the initial ones
  return net.eval()


def tiny_arrays():
  """Random arrays with the names and the shapes of `tiny_resnet`."""
  rng, shapes = np.random.default_rng(0), {'conv1': (2, 1, 3, 3), 'linear': (3, 4)}
  norms = {'bn1': 2}
  for layer, (c, f) in {'layer1.0': (2, 2), 'layer2.0': (2, 4)}.items():
    shapes |= {f'{layer}.conv1': (f, c, 3, 3), f'{layer}.conv2': (f, f, 3, 3)}
    norms |= {f'{layer}.bn1': f, f'{layer}.bn2': f}
  shapes['layer2.0.shortcut.0'], norms['layer2.0.shortcut.1'] = (4, 2, 1, 1), 4
  arrays = {f'{name}.weight': rng.normal(size=shape) for name, shape in shapes.items()}
  for name, size in norms.items():
    arrays |= {f'{name}.{part}': rng.uniform(.5, 1, size)
               for part in ('weight', 'bias', 'running_mean', 'running_var')}
  arrays['linear.bias'] = rng.normal(size=3)
  return {name: value.astype(np.float32) for name, value in arrays.items()}


def pretrained_run(source, **model):
  """A run of :pretrained on the tiny data that starts from a file."""
  c = finetune_runs.config_of(start_epoch=0, source=str(source), distance='cross_entropy', clean_weight=0.,
                              anchor_weight=0.)
  c.model = dict(name='ResNet18', dtype='float32') | TINY | model
  return finetune_runs.pieces(c)[0]


def variables_of(state):
  return {'params': state.params, 'batch_stats': state.batch_stats}


def test_it_starts_from_a_file_without_pytorch(tmp_path):
  path, arrays = tmp_path / 'net.npz', tiny_arrays()
  np.savez(path, **{f'module.{name}': value for name, value in arrays.items()})
  run = pretrained_run(path)
  state = finetune_lib.start_from(run, setup.init_state(run))
  expected = importers.from_torch(models.ResNet18(num_outputs=3, **TINY), arrays, (4, 4, 1))
  finetune_runs.equal(variables_of(state), expected)
  assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(state.batch_stats))
  # What does not fit is one line that names it.
  for name, content, field, reason in (
      ('gone.npz', None, 'finetune.source', 'there is no such file'),
      ('damaged.npz', b'PK', 'finetune.source', 'cannot be read: name a complete .npz file'),
      ('other.npz', {'conv2.weight': np.ones(2)}, 'finetune.source',
       "config.model: model = 'ResNet18': the state dict is of another network; missing: bn1.bias, .*; "
       'unknown: conv2.weight'),
      ('normalised.npz', {'mean': np.full(1, .5), 'std': np.full(1, .25)}, 'model.normalize',
       r'make the model with normalize=\(\(0.5,\), \(0.25,\)\)$')):
    if isinstance(content, dict):
      np.savez(tmp_path / name, **(arrays if 'mean' in content else {}), **content)
    elif content:
      (tmp_path / name).write_bytes(content)
    run.config.finetune.source = str(tmp_path / name)
    with pytest.raises(errors.UserError, match=rf'^config.{field} = .*: .*{reason}') as caught:
      finetune_lib.start_from(run, state)
    assert len(str(caught.value).splitlines()) == 1


def test_it_starts_with_the_logits_of_pytorch(tmp_path):
  torch = pytest.importorskip('torch')
  net = tiny_resnet(torch)
  torch.save({'net': net.state_dict(), 'acc': 94.1, 'epoch': 199}, tmp_path / 'ckpt.pth')
  run = pretrained_run(tmp_path / 'ckpt.pth')
  state = finetune_lib.start_from(run, setup.init_state(run))
  x = torch.rand(5, 1, 4, 4)
  with torch.no_grad():
    expected = net(x).numpy()
  found = run.network.deployed(variables_of(state), x.numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_data_of_the_source_may_be_moved(source, tmp_path):
  moved, other = tmp_path / 'moved.npz', tmp_path / 'other.npz'
  shutil.copy(tiny_data.path(24), moved)
  arrays = dict(np.load(moved))
  np.savez(other, **arrays | {'test_label': arrays['test_label'][::-1]})
  c = fields_lib.default()
  stored = json.loads((source / 'config.json').read_text())
  c.model = {}
  c.update(stored)
  c.loss = 'finetune'
  c.finetune.update(start_epoch=0, source=str(source))
  c.dataset.name = str(moved)
  run = setup.build(c)
  state = setup.init_state(run)
  assert finetune_lib.start_from(run, state).step == 0
  c.dataset.name = str(other)
  with pytest.raises(errors.UserError, match='^config.finetune.source = .*: its config.dataset.name is '):
    finetune_lib.start_from(setup.build(c), state)


@pytest.mark.long
@pytest.mark.parametrize('form', ['', 'radius-', 'controller-', 'dual-'])
def test_a_pretrained_run_resumes_without_its_file(form, tmp_path, capsys):
  whole, parts, path = tmp_path / 'whole', tmp_path / 'parts', tmp_path / 'net.npz'
  np.savez(path, **tiny_arrays())
  fields = {'finetune.source': path, 'finetune.start_epoch': 0, 'model.width': 2, 'checkpoint.keep': 9}
  assert command(whole, f'pretrained-{form}', **fields) == 0, capsys.readouterr().err
  shutil.copytree(whole, parts)
  for step in range(5, 9):
    shutil.rmtree(parts / 'checkpoints' / f'{step:08d}', ignore_errors=True)
  (parts / 'results.json').unlink()
  path.unlink()
  assert command(parts, f'pretrained-{form}', **fields) == 0
  assert 'resuming after step 4' in capsys.readouterr().err
  assert digests(whole, 8) == digests(parts, 8)
  curves = [json.loads((d / 'results.json').read_text())['finetune'] for d in (whole, parts)]
  assert curves[0] == curves[1] and [point['epoch'] for point in curves[0]['curve']] == [1, 2, 3, 4]

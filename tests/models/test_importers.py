"""Imported PyTorch weights: logits against PyTorch, and against NumPy."""

import collections
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import errors, models
from at_jax.models import importers

SMALL = models.SmallCNN(num_outputs=3, features=(2, 4), hidden=(5,))
RESIDUAL = {
    'preact': models.PreActResNet18(num_outputs=5, width=4, stage_sizes=(2, 1)),
    'preact raw': models.PreActResNet18(num_outputs=5, width=4, stage_sizes=(2, 1),
                                        raw_shortcut=True),
    'preact no bn': models.PreActResNet18(num_outputs=5, width=4, stage_sizes=(2, 1),
                                          final_norm=False),
    'wide': models.WideResNet(num_outputs=5, depth=16, widen_factor=2),
    'resnet': models.ResNet18(num_outputs=5, width=4, stage_sizes=(2, 1)),
    'resnet50': models.ResNet50(num_outputs=5, width=4, stage_sizes=(2, 1)),
}
# With the published sizes.
WHOLE = {'preact whole': models.PreActResNet18(num_outputs=10),
         'wide whole': models.WideResNet(num_outputs=10, depth=34, widen_factor=10)}


def small_arrays(image=(8, 10)):
  """A state dict of SMALL with TRADES' names, and its forward pass in NumPy."""
  random = np.random.default_rng(0)
  flat = 4 * ((image[0] - 4) // 2) * ((image[1] - 4) // 2)
  shapes = {'feature_extractor.conv1': (2, 1, 3, 3), 'feature_extractor.conv2': (4, 2, 3, 3),
            'classifier.fc1': (5, flat), 'classifier.fc2': (3, 5)}
  arrays = {f'{name}.weight': random.normal(size=s).astype(np.float32) / 2
            for name, s in shapes.items()}
  arrays |= {f'{name}.bias': random.normal(size=s[0]).astype(np.float32)
             for name, s in shapes.items()}

  def forward(x):  # [B, 1, H, W], like PyTorch
    for layer in ('conv1', 'conv2'):
      windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
      x = np.einsum('bchwij,ocij->bohw', windows, arrays[f'feature_extractor.{layer}.weight'])
      x = np.maximum(x + arrays[f'feature_extractor.{layer}.bias'][:, None, None], 0)
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5)).reshape(b, -1)
    x = np.maximum(x @ arrays['classifier.fc1.weight'].T + arrays['classifier.fc1.bias'], 0)
    return x @ arrays['classifier.fc2.weight'].T + arrays['classifier.fc2.bias']

  return arrays, forward


def named(prefix, arrays):
  return {prefix + name: value for name, value in arrays.items()}


@pytest.mark.parametrize('wrap', [
    lambda arrays: arrays,
    lambda arrays: {'state_dict': {f'module.{k}': v for k, v in arrays.items()}, 'epoch': 7},
    lambda arrays: {'model': {f'module.model.{k}': v for k, v in arrays.items()}},
    lambda arrays: named('_orig_mod.', arrays),
    lambda arrays: named('module._orig_mod.', arrays),
    lambda arrays: {'epoch': 9, 'n': np.array(3.), 'ema_state_dict': named('1.', arrays)},
    lambda arrays: named('1.', arrays) | {'0.mean': np.zeros(1), '0.std': np.ones(1)},
    lambda arrays: {'nets': {'ema': named('module.', arrays) | {'n_averaged': np.array(5)}},
                    'optimizer': {'state': {0: {'momentum_buffer': np.ones(3)}}, 'param_groups': [{}]}},
    lambda arrays: {k.replace('fc1', 'fc1._orig_mod'): v for k, v in arrays.items()},
])
def test_small_cnn_equals_numpy_with_channels_first(wrap):
  arrays, forward = small_arrays()
  x = np.random.default_rng(1).uniform(size=(6, 8, 10, 1)).astype(np.float32)
  variables = importers.from_torch(SMALL, wrap(arrays), (8, 10, 1))
  np.testing.assert_allclose(SMALL.apply(variables, x), forward(x.transpose(0, 3, 1, 2)), atol=1e-5)


def test_names_and_shapes_that_differ_are_listed():
  arrays, _ = small_arrays()
  arrays['classifier.fc9.weight'] = arrays.pop('classifier.fc2.weight')
  with pytest.raises(errors.UserError, match='missing: classifier.fc2.weight; '
                     'unknown: classifier.fc9.weight'):
    importers.from_torch(SMALL, arrays, (8, 10, 1))
  arrays, _ = small_arrays()
  with pytest.raises(errors.UserError, match=r'another shape for inputs \(8, 12, 1\), which is '
                     r'\(H, W, C\): classifier.fc1.weight \(5, 24\)$'):
    importers.from_torch(SMALL, arrays, (8, 12, 1))
  with pytest.raises(errors.UserError, match='SmallCNN, PreActResNet18, ResNet18, ResNet50 and WideResNet'):
    importers.from_torch(models.DucatResNet18(num_outputs=5, width=4), {}, (8, 8, 3))


def imported(arrays, model=SMALL):
  return importers.from_torch(model, arrays, (8, 10, 1))


def test_several_mappings_that_fit_are_named():
  arrays, _ = small_arrays()
  with pytest.raises(errors.UserError, match=r"""\["\['state_dict'\]", "\['ema'\]"\]: each of these holds"""):
    imported({'state_dict': arrays, 'ema': arrays, 'epoch': 3})
  with pytest.raises(errors.UserError, match="'student.'.*'teacher.'.*: each of these holds the network"):
    imported(named('student.', arrays) | named('teacher.', arrays))
  with pytest.raises(errors.UserError, match=r"\['state_dict'\], names that begin with 'student.'"):
    imported({'state_dict': named('student.', arrays) | named('teacher.', arrays)})
  with pytest.raises(errors.UserError, match='give one, such as the mapping itself alone'):
    imported(arrays | {'ema': arrays})
  # One that does not fit is no choice.
  imported({'state_dict': arrays, 'ema': named('x.', {'conv1.weight': np.ones(2)})})


def test_layers_around_the_network_are_not_ignored():
  # A layer before the network changes its logits.
  arrays, _ = small_arrays()
  with pytest.raises(errors.UserError, match='another network; unknown: 0.weight$'):
    imported(named('1.', arrays) | {'0.weight': np.ones((1, 1, 3, 3))})
  with pytest.raises(errors.UserError, match='another network; unknown: temperature$'):
    imported(arrays | {'temperature': np.array(2.)})


def test_normalisation_is_never_ignored():
  arrays, forward = small_arrays()
  buffers = {'0.mean': np.float32([[[.1307]]]), '0.std': np.float32([[[.3081]]])}
  behind = named('1.', arrays) | buffers
  remedy = (r'normalises images by 0.mean and 0.std: make the model with '
            r'normalize=\(\(0.1307,\), \(0.3081,\)\)$')
  with pytest.raises(errors.UserError, match='model.normalize = None: the state dict ' + remedy):
    imported(behind)
  with pytest.raises(errors.UserError, match=remedy):
    imported(behind, SMALL.clone(normalize=(.5, .5)))
  with pytest.raises(errors.UserError, match=remedy):  # of pixels up to 255
    imported(behind | {name: 255 * value for name, value in buffers.items()})
  model = SMALL.clone(normalize=((.1307,), (.3081,)))
  x = np.random.default_rng(1).uniform(size=(3, 8, 10, 1)).astype(np.float32)
  expected = forward((x.transpose(0, 3, 1, 2) - .1307) / .3081)
  np.testing.assert_allclose(model.apply(imported(behind, model), x), expected, atol=1e-4)
  # A network that divides pixels by 255 takes our images as they are.
  divided = behind | {'0.mean': np.zeros(1), '0.std': np.full(1, 255.)}
  jax.tree.map(np.testing.assert_array_equal, imported(divided), imported(arrays))
  with pytest.raises(errors.UserError, match=r'make the model with normalize=None$'):
    imported(divided, model)
  with pytest.raises(errors.UserError, match='unknown: mean$'):  # a mean without a std
    imported(arrays | {'mean': np.zeros(1)})


def test_safetensors_files_are_read(tmp_path):
  safetensors = pytest.importorskip('safetensors.flax')
  arrays, _ = small_arrays()
  for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
    rounded = {f'model.{name}': jnp.asarray(value, dtype) for name, value in arrays.items()}
    safetensors.save_file(rounded, tmp_path / 'weights.safetensors')
    jax.tree.map(np.testing.assert_array_equal, imported(tmp_path / 'weights.safetensors'), imported(rounded))
  (tmp_path / 'damaged.safetensors').write_bytes(b'damaged')
  for name, message in (
      ('damaged.safetensors', 'cannot be read: name a complete .safetensors file with the state dict; '),
      ('none.safetensors', 'cannot be read: there is no such file$'),
      ('weights.ckpt', 'use a file that ends in .pt, .pth, .safetensors, .npz$')):
    with pytest.raises(errors.UserError, match=f'state_dict = .*{name}.: .*{message}'):
      imported(str(tmp_path / name))


def test_quantised_weights_are_refused():
  arrays, _ = small_arrays()
  with pytest.raises(errors.UserError, match='quantised: classifier.fc1.weight int8$'):
    imported(arrays | {'classifier.fc1.weight': arrays['classifier.fc1.weight'].astype(np.int8)})


def test_pytorch_tensors_of_every_kind_are_converted():
  torch = pytest.importorskip('torch')
  arrays, _ = small_arrays()
  tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
  for convert in (torch.nn.Parameter, torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.double,
                  lambda value: torch.nn.Parameter(value.bfloat16())):
    converted = {name: convert(value) for name, value in tensors.items()}
    # bfloat16 and half are exact in float32.
    exact = imported({name: value.detach().double().numpy() for name, value in converted.items()})
    jax.tree.map(np.testing.assert_array_equal, imported(converted), exact)


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated:FutureWarning')
def test_weight_normalisation_equals_pytorch():
  torch = pytest.importorskip('torch')
  arrays, _ = small_arrays()
  for weight_norm in (torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm):
    layers, given = {'feature_extractor.conv2': torch.nn.Conv2d(2, 4, 3)}, dict(arrays)
    layers['classifier.fc2'] = torch.nn.Linear(5, 3)
    for name, layer in layers.items():
      for part in ('weight', 'bias'):
        given.pop(f'{name}.{part}')
      with torch.no_grad():
        for parameter in weight_norm(layer).parameters():
          parameter.mul_(1.5)  # so that g is not the norm of v
      given |= named(f'{name}.', layer.state_dict())
    for layer in layers.values():  # the old function updates `weight` in the forward pass only
      layer(torch.zeros(1, 2, 3, 3) if isinstance(layer, torch.nn.Conv2d) else torch.zeros(1, 5))
    plain = arrays | {f'{name}.{part}': getattr(layer, part).detach().numpy()
                      for name, layer in layers.items() for part in ('weight', 'bias')}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), imported(given), imported(plain))


def test_at_most_four_names_are_listed():
  with pytest.raises(errors.UserError, match='missing: bn.bias, .*, and 34 more$') as caught:
    importers.from_torch(RESIDUAL['preact'], {}, (8, 8, 3))
  assert str(caught.value).count('.') < 12


def test_invalid_arguments_name_the_remedy():
  model = models.SmallCNN(num_outputs=2)
  with pytest.raises(errors.UserError, match='give a mapping from names to arrays'):
    importers.from_torch(model, [np.eye(2)], (28, 28, 1))
  with pytest.raises(errors.UserError, match='give a mapping'):
    importers.from_torch(model, None, (28, 28, 1))
  with pytest.raises(errors.UserError, match='state_dict = 0: names are strings'):
    importers.from_torch(model, {0: np.eye(2)}, (28, 28, 1))
  # With 'SAME' the sizes could match, but the rows of the dense kernel would have another order.
  with pytest.raises(errors.UserError, match='model.stem_stride = 2'):
    importers.from_torch(models.SmallCNN(num_outputs=2, stem_stride=2), {}, (28, 28, 1))
  with pytest.raises(errors.UserError, match=r'image_shape = \(28, 28\): use \(H, W, C\)'):
    importers.from_torch(model, {}, (28, 28))
  with pytest.raises(errors.UserError, match='model = .*weights can be read for SmallCNN'):
    importers.from_torch(lambda x: x, {}, (28, 28, 1))


# PyTorch's names of arrays, by the collection and the name in Flax.
LEAVES = {('params', 'kernel'): 'weight', ('params', 'scale'): 'weight', ('params', 'bias'): 'bias',
          ('batch_stats', 'mean'): 'running_mean', ('batch_stats', 'var'): 'running_var'}


# Number of arrays: 10 per block, 1 per shortcut convolution, 1 for the stem, 4 for the last BatchNorm, and 2
# for the head; 3 and 6 blocks. A ResNet has BatchNorm after the shortcut and the stem, but not at the end.
@pytest.mark.parametrize('name, layer, count', [
    ('preact', 'layer2.0.shortcut.0.weight', 38), ('preact no bn', 'layer1.1.bn2.running_var', 34),
    ('wide', 'block2.layer.0.convShortcut.weight', 70), ('resnet', 'layer2.0.shortcut.1.running_var', 42),
    # 15 for a bottleneck, 5 for each shortcut (also the first block's), 5 for the stem, 2 for the head.
    ('resnet50', 'layer1.0.downsample.1.running_var', 62)])
def test_every_array_of_a_residual_network_is_placed(name, layer, count):
  model = RESIDUAL[name]
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  filled = jax.tree.map(
      lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), shapes)
  arrays = {}
  for path, value in jax.tree_util.tree_leaves_with_path(filled):
    collection, inner, leaf = (key.key for key in path)
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    arrays[f'{importers._layer(model, inner)}.{LEAVES[collection, leaf]}'] = value
  assert layer in arrays and len(arrays) == count
  arrays |= {'bn1.num_batches_tracked': np.array(3), 'sub_block1.layer.0.bn1.weight': np.ones(2)}
  back = importers.from_torch(model, arrays, (8, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, back,
               jax.tree.map(lambda v: v.astype(np.float32), filled))


def preact(torch, *, width, sizes, outputs, raw, final_norm):
  """The network of RobustBench's resnet.py, with its names."""
  nn = torch.nn

  class Block(nn.Module):

    def __init__(self, c, f, stride):
      super().__init__()
      self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(f)
      self.conv1 = nn.Conv2d(c, f, 3, stride, 1, bias=False)
      self.conv2 = nn.Conv2d(f, f, 3, 1, 1, bias=False)
      if stride != 1 or c != f:
        self.shortcut = nn.Sequential(nn.Conv2d(c, f, 1, stride, bias=False))

    def forward(self, x):
      out = torch.relu(self.bn1(x))
      shortcut = self.shortcut(x if raw else out) if hasattr(self, 'shortcut') else x
      return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(out))))

  class Net(nn.Module):

    def __init__(self):
      super().__init__()
      self.conv1, c = nn.Conv2d(3, width, 3, 1, 1, bias=False), width
      for stage, size in enumerate(sizes):
        f, blocks = width * 2 ** stage, []
        for block in range(size):
          blocks.append(Block(c, f, 2 if stage and not block else 1))
          c = f
        self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
      if final_norm:
        self.bn = nn.BatchNorm2d(c)
      self.linear = nn.Linear(c, outputs)

    def forward(self, x):
      x = self.conv1(x)
      for stage in range(len(sizes)):
        x = getattr(self, f'layer{stage + 1}')(x)
      x = torch.relu(self.bn(x)) if final_norm else x
      return self.linear(x.mean((2, 3)))

  return Net()


def bottleneck(torch, *, width, sizes, outputs):
  """The ResNet-50 of torchvision, version 1.5, with its names."""
  nn = torch.nn

  class Block(nn.Module):

    def __init__(self, c, f, stride):
      super().__init__()
      self.conv1, self.bn1 = nn.Conv2d(c, f, 1, bias=False), nn.BatchNorm2d(f)
      self.conv2, self.bn2 = nn.Conv2d(f, f, 3, stride, 1, bias=False), nn.BatchNorm2d(f)
      self.conv3, self.bn3 = nn.Conv2d(f, 4 * f, 1, bias=False), nn.BatchNorm2d(4 * f)
      if stride != 1 or c != 4 * f:
        self.downsample = nn.Sequential(nn.Conv2d(c, 4 * f, 1, stride, bias=False), nn.BatchNorm2d(4 * f))

    def forward(self, x):
      out = torch.relu(self.bn1(self.conv1(x)))
      out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
      return torch.relu(out + (self.downsample(x) if hasattr(self, 'downsample') else x))

  stem = dict(conv1=nn.Conv2d(3, width, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU(),
              maxpool=nn.MaxPool2d(3, 2, 1))
  c, stages = width, {}
  for stage, size in enumerate(sizes):
    f, blocks = width * 2 ** stage, []
    for block in range(size):
      blocks.append(Block(c, f, 2 if stage and not block else 1))
      c = 4 * f
    stages[f'layer{stage + 1}'] = nn.Sequential(*blocks)
  head = dict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(c, outputs))
  return nn.Sequential(collections.OrderedDict(stem | stages | head))


def wide(torch, *, depth, widen, outputs):
  """The network of TRADES' wideresnet.py, with its names and the block that it never calls."""
  nn, n = torch.nn, (depth - 4) // 6

  class Block(nn.Module):

    def __init__(self, c, f, stride):
      super().__init__()
      self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(f)
      self.conv1 = nn.Conv2d(c, f, 3, stride, 1, bias=False)
      self.conv2 = nn.Conv2d(f, f, 3, 1, 1, bias=False)
      self.convShortcut = nn.Conv2d(c, f, 1, stride, bias=False) if c != f else None

    def forward(self, x):
      out = torch.relu(self.bn1(x))
      shortcut = x if self.convShortcut is None else self.convShortcut(out)
      return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(out))))

  class Stage(nn.Module):

    def __init__(self, c, f, stride):
      super().__init__()
      self.layer = nn.Sequential(*(Block(c if i == 0 else f, f, stride if i == 0 else 1)
                                   for i in range(n)))

    def forward(self, x):
      return self.layer(x)

  class Net(nn.Module):

    def __init__(self):
      super().__init__()
      sizes = [16, 16 * widen, 32 * widen, 64 * widen]
      self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
      self.block1, self.sub_block1 = Stage(*sizes[:2], 1), Stage(*sizes[:2], 1)
      self.block2, self.block3 = Stage(*sizes[1:3], 2), Stage(*sizes[2:], 2)
      self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], outputs)

    def forward(self, x):
      x = self.block3(self.block2(self.block1(self.conv1(x))))
      return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))

  return Net()


def small(torch):
  """The network of TRADES' small_cnn.py, narrower, with its names."""
  nn = torch.nn
  widths, parts = (1, 2, 2, 4, 4), {}
  for i in range(1, 5):
    parts[f'conv{i}'], parts[f'relu{i}'] = nn.Conv2d(widths[i - 1], widths[i], 3), nn.ReLU()
    if i % 2 == 0:
      parts[f'maxpool{i // 2}'] = nn.MaxPool2d(2, 2)
  dense = dict(fc1=nn.Linear(4 * 4 * 4, 6), relu1=nn.ReLU(), drop=nn.Dropout(.5),
               fc2=nn.Linear(6, 5), relu2=nn.ReLU(), fc3=nn.Linear(5, 3))
  return nn.Sequential(collections.OrderedDict(
      feature_extractor=nn.Sequential(collections.OrderedDict(parts)), flatten=nn.Flatten(),
      classifier=nn.Sequential(collections.OrderedDict(dense))))


def test_small_cnn_equals_pytorch():
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  net, x = small(torch).eval(), torch.rand(5, 1, 28, 28)
  with torch.no_grad():
    expected = net(x).numpy()
  model = models.SmallCNN(num_outputs=3, features=(2, 2, 4, 4), hidden=(6, 5))
  arrays = {k: v.numpy() for k, v in net.state_dict().items()}
  variables = importers.from_torch(model, arrays, (28, 28, 1))
  logits = model.apply(variables, x.numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.long
def test_published_resnet_equals_pytorch():
  # The network and the weights that AutoAttack's authors ship with their package.
  torch, package = pytest.importorskip('torch'), pytest.importorskip('pyautoattack')
  folder = pathlib.Path(package.__file__).parent / 'examples'
  state_dict = torch.load(folder / 'model_test.pt', 'cpu')
  net = runpy.run_path(str(folder / 'resnet.py'))['ResNet18']()
  net.load_state_dict(state_dict)
  x = torch.rand(16, 3, 32, 32, generator=torch.manual_seed(0))
  with torch.no_grad():
    expected = net.eval()(x).numpy()
  model = models.ResNet18(num_outputs=10)
  variables = importers.from_torch(model, state_dict, (32, 32, 3))
  logits = jax.jit(model.apply)(variables, x.numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name in RESIDUAL | WHOLE if name != 'resnet'])
def test_residual_networks_equal_pytorch(name):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  model = (RESIDUAL | WHOLE)[name]
  if isinstance(model, models.WideResNet):
    net = wide(torch, depth=model.depth, widen=model.widen_factor, outputs=model.num_outputs)
  elif isinstance(model, models.ResNet50):
    net = bottleneck(torch, width=model.width, sizes=model.stage_sizes, outputs=model.num_outputs)
  else:
    net = preact(torch, width=model.width, sizes=model.stage_sizes, outputs=model.num_outputs,
                 raw=model.raw_shortcut, final_norm=model.final_norm)
  x = torch.rand(16, 3, 8, 8)
  for _ in range(3):
    net.train()(x)  # so that the running statistics are not the initial ones
  with torch.no_grad():
    expected = net.eval()(x).numpy()
  arrays = {f'module.{k}': v.numpy() for k, v in net.state_dict().items()}
  variables = importers.from_torch(model, {'state_dict': arrays}, (8, 8, 3))
  logits = model.apply(variables, x.numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_files_of_pytorch_and_of_numpy_are_read(tmp_path):
  arrays, _ = small_arrays()
  np.savez(tmp_path / 'weights.npz', **arrays)
  jax.tree.map(np.testing.assert_array_equal, imported(tmp_path / 'weights.npz'), imported(arrays))
  torch = pytest.importorskip('torch')
  path = str(tmp_path / 'weights.pt')
  torch.save({'net': {name: torch.from_numpy(value) for name, value in arrays.items()}, 'acc': 94.}, path)
  jax.tree.map(np.testing.assert_array_equal, imported(path), imported(arrays))
  torch.save(torch.nn.Linear(2, 2), path)  # a whole module: code would run
  with pytest.raises(errors.UserError, match='name a complete .pt file with the state dict; '):
    imported(path)

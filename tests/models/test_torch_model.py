"""PyTorch models behind JAX: logits, gradients and attacks are those of the same network in JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, errors
from at_jax.attacks.autoattack import state_file
from tests.fixtures import processes

torch = pytest.importorskip('torch')
torch_model = pytest.importorskip('at_jax.models.torch_model')
torch.set_num_threads(1)  # PyTorch's threads spin while they wait
KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(5, 6, 7, 2)).astype(np.float32)


def network(dtype=torch.float32):
  """A convolution, BatchNorm, a ReLU and a dense layer, with random weights and statistics."""
  torch.manual_seed(0)
  net = torch.nn.Sequential(
      torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Flatten(),
      torch.nn.Linear(60, 4))
  net(torch.rand(8, 2, 6, 7))
  return net.to(dtype).eval()


def in_jax(net):
  """The same network for channels last; JAX differentiates it."""
  w = {name: jnp.asarray(value.detach().float().numpy()) for name, value in net.state_dict().items()}

  def logits_fn(x):
    channel = lambda name: w[name][:, None, None]
    z = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), w['0.weight'], (1, 1), 'VALID')
    z = (z + channel('0.bias') - channel('1.running_mean')) / jnp.sqrt(channel('1.running_var') + 1e-5)
    z = jax.nn.relu(z * channel('1.weight') + channel('1.bias'))
    return z.reshape(len(x), -1) @ w['4.weight'].T + w['4.bias']

  return logits_fn


@pytest.fixture(scope='module')
def pair():
  net = network()
  return torch_model.TorchModel(net, channels_last=True), in_jax(net)


def test_logits_and_gradients_equal_those_of_jax(pair):
  cotangent = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
  for logits_fn in (pair[0], jax.jit(pair[0])):
    logits, pull = jax.vjp(logits_fn, jnp.asarray(X))
    expected, expected_pull = jax.vjp(pair[1], jnp.asarray(X))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    for _ in range(2):  # the second time, PyTorch's graph is gone
      np.testing.assert_allclose(pull(cotangent)[0], expected_pull(cotangent)[0], atol=1e-5)
  first = torch_model.TorchModel(network())
  np.testing.assert_allclose(first(X.transpose(0, 3, 1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize('apply', [
    lambda f, xs, zs: jax.vmap(f)(xs),
    lambda f, xs, zs: jax.vmap(lambda x: jax.grad(lambda x: jnp.sum(f(x) ** 2))(x))(xs),
    lambda f, xs, zs: jax.vmap(lambda z: jax.vjp(f, xs[0])[1](z)[0])(zs),
    lambda f, xs, zs: jax.vmap(lambda x: jax.vmap(lambda z: jax.vjp(f, x)[1](z)[0])(zs))(xs),
    lambda f, xs, zs: jax.vmap(jax.vmap(f))(jnp.stack([xs, 2 * xs])),
])
def test_vmap_equals_that_of_jax(apply, pair):
  xs = jnp.stack([X, .5 * X, 1 - X])
  zs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4)), jnp.float32)
  np.testing.assert_allclose(apply(pair[0], xs, zs), apply(pair[1], xs, zs), atol=1e-5)
  assert not pair[0]._kept  # no graph is left


def attacked(logits_fn, **options):
  y = np.array([0, 1, 2, 3, 0])
  return attacks.pgd(logits_fn, X, y, KEY, epsilon=.1, step_size=.03, num_steps=2, **options)


@pytest.mark.oldest  # its callbacks are held by weak references
def test_new_weights_are_used_without_compiling_again():
  net = network()
  logits_fn, compiled = torch_model.TorchModel(net, channels_last=True), []
  attacked(logits_fn)
  with torch.no_grad():
    net[4].weight *= -1
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, *_, **__: compiled.append(name) if 'backend_compile' in name else None)
  result = attacked(logits_fn)
  assert not compiled
  np.testing.assert_allclose(result.x, attacked(in_jax(net)).x, atol=1e-6)
  assert compiled


def test_training_mode_is_refused_by_name():
  inner = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(84, 4))
  net = torch.nn.Sequential(torch.nn.Flatten(), inner)
  with pytest.raises(errors.UserError, match=r'^model.training = True: call model.eval\(\)'):
    torch_model.TorchModel(net)
  logits_fn = torch_model.TorchModel(net.eval())
  net[1][0].train()
  with pytest.raises(errors.UserError, match='^model.1.0.training = True'):
    torch_model.TorchModel(net)
  with pytest.raises(ValueError, match='^logits_fn = .*model.1.0.training = True: call model.eval') as caught:
    attacked(logits_fn)
  assert '\n' not in str(caught.value)


def test_the_module_and_grad_modes_are_left_as_they_were():
  net = network()
  net[0].weight.requires_grad_(False)
  before = [parameter.requires_grad for parameter in net.parameters()]
  for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
    with mode:
      modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
      result = attacked(torch_model.TorchModel(net, channels_last=True))
      assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    np.testing.assert_allclose(result.x, attacked(in_jax(net)).x, atol=1e-6)
  assert [parameter.requires_grad for parameter in net.parameters()] == before
  assert all(parameter.grad is None for parameter in net.parameters())


def test_the_dtype_of_the_model_is_kept():
  half = network(torch.bfloat16)
  # bfloat16 has 8 bits of precision.
  logits = torch_model.TorchModel(half, channels_last=True)(X)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, in_jax(half)(X), rtol=.05, atol=.05)
  attacked(torch_model.TorchModel(half, channels_last=True))
  double = torch_model.TorchModel(network(torch.float64), channels_last=True)
  assert double(X).dtype == jnp.float32  # JAX has no more
  with jax.enable_x64(True):
    logits, pull = jax.vjp(double, jnp.asarray(X, jnp.float64))
    gradient, = pull(jnp.ones((5, 4)))
    assert logits.dtype == gradient.dtype == jnp.float64
    with torch.no_grad():
      expected = network(torch.float64)(torch.from_numpy(X.transpose(0, 3, 1, 2)).double())
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-13)


def test_a_model_may_write_to_its_input():
  def logits_fn(x):
    x.data.mul_(2)
    return x.flatten(1)[:, :3]

  x = jnp.ones((2, 3))
  np.testing.assert_array_equal(torch_model.TorchModel(logits_fn)(x), np.full((2, 3), 2.))
  np.testing.assert_array_equal(x, np.ones((2, 3)))


def test_a_model_of_constant_logits_has_gradient_zero():
  model = torch_model.TorchModel(lambda x: torch.ones(len(x), 4, requires_grad=True))
  gradient = jax.grad(lambda x: model(x).sum())(jnp.asarray(X))
  np.testing.assert_array_equal(gradient, np.zeros_like(X))


def test_a_model_that_hides_its_graph_is_refused():
  def detached(x):
    return x.flatten(1)[:, :4].detach()

  class Decorated(torch.nn.Module):

    @torch.no_grad()
    def forward(self, x):
      return x.flatten(1)[:, :4]

  for model, name in ((detached, 'detached'), (Decorated().eval(), 'Decorated')):
    logits_fn = torch_model.TorchModel(model)
    with pytest.raises(errors.UserError, match=f"^model = '{name}': its logits have no gradient") as caught:
      attacked(logits_fn)
    assert '\n' not in str(caught.value)
    # Square needs no gradient.
    assert attacks.square(logits_fn, X, np.zeros(5, int), KEY, epsilon=.1, num_queries=2).x.shape == X.shape


def test_other_derivatives_than_gradients_are_refused(pair):
  x, total = jnp.asarray(X[:1]), lambda x: pair[0](x).sum()
  for derivative in (lambda: jax.jvp(pair[0], (x,), (x,)), lambda: jax.hessian(total)(x)):
    with pytest.raises((TypeError, ValueError, NotImplementedError), match='(?i)jvp|differentiation'):
      derivative()


@pytest.mark.parametrize('model, message', [
    (lambda x: (x.flatten(1), 0), 'returns a tuple: return the logits alone'),
    (lambda x: {'logits': x.flatten(1)}, r"returns a dict: .* model\(x\)\['logits'\]"),
    (lambda x: x.flatten(1) @ torch.ones(3, 2),
     r'fails on float32\[5, 6, 7, 2\] with channels_last=False: check both; RuntimeError: mat1'),
    (lambda x: x.flatten(1).argmax(1), 'gives dtype int'),
    (lambda x: x.flatten(1)[:, 0], 'of two classes return stack'),
    (lambda x: x.sum(), 'one row per example'),
])
def test_wrong_outputs_are_named_in_one_line(model, message):
  with pytest.raises(ValueError, match=message) as caught:
    attacked(torch_model.TorchModel(model))
  assert '\n' not in str(caught.value)


def test_mistakes_name_torch_model():
  with pytest.raises(errors.UserError, match='model = 3: use a torch.nn.Module or a function'):
    torch_model.TorchModel(3)
  with pytest.raises(errors.UserError, match="^model = <class 'collections.OrderedDict'>: use a torch"):
    torch_model.TorchModel(network().state_dict())
  with pytest.raises(ValueError, match='logits_fn = Sequential .* models.torch_model.TorchModel'):
    attacked(network())


def test_the_state_file_verifies_the_weights(tmp_path):
  class Stopped(Exception):
    pass

  def stop(_):
    raise Stopped

  net = network()
  model = torch_model.TorchModel(net, channels_last=True)
  y = np.asarray(model(X)).argmax(1)
  run = lambda **options: attacks.autoattack(
      model, X, y, KEY, epsilon=.05, attacks=('apgd-ce',), num_steps=3, **options)
  path = tmp_path / 'state.npz'
  with pytest.raises(Stopped):
    run(state_path=path, progress=stop)
  with torch.no_grad():
    net[4].bias += 1e-6  # too little for another verdict
  with pytest.raises(state_file.StateMismatch, match='different weights'):
    run(state_path=path)
  with torch.no_grad():
    net.load_state_dict(network().state_dict())
  resumed = run(state_path=path)
  np.testing.assert_array_equal(resumed.robust, run().robust)


_ON_ONE_CORE = '''
import os
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import jax
import numpy as np
import torch
from at_jax import attacks
from at_jax.models import torch_model

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
x = np.random.default_rng(0).uniform(size=(401, 32, 32, 3)).astype(np.float32)
model = torch_model.TorchModel(net, channels_last=True)
y = np.asarray(model(x)).argmax(1)
for _ in range(20):
  waiting = jax.jit(model)(x)
for devices in (1, 4):
  found = attacks.autoattack(
      model, x, y, jax.random.key(0), epsilon=.002, num_steps=3, num_queries=20, batch_size=400,
      attacks=('apgd-ce', 'square'), devices=jax.devices()[:devices])
  print(found.robust.sum())
'''


@pytest.mark.long  # a process with four devices
def test_four_devices_on_one_core_do_not_wait_for_each_other():
  # jax.pure_callback, which copies arrays of this size in the pool of XLA, never ends here.
  out = subprocess.run([sys.executable, '-c', _ON_ONE_CORE], check=True, text=True, timeout=600,
                       stdout=subprocess.PIPE, env=processes.environment(4)).stdout
  one, four = map(int, out.split())
  assert one == four and 0 < one < 401

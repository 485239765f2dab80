"""The same network from several libraries gives the same attack results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import attacks, models
from at_jax.models import importers

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(5)
W1, B1 = RANDOM.normal(size=(16, 12)).astype(np.float32), RANDOM.normal(size=12).astype(np.float32)
W2, B2 = RANDOM.normal(size=(12, 5)).astype(np.float32), RANDOM.normal(size=5).astype(np.float32)
X = RANDOM.uniform(size=(10, 4, 4, 1)).astype(np.float32)


def plain():
  """The reference network; all others have its weights."""
  return lambda x: jax.nn.relu(x.reshape(len(x), -1) @ W1 + B1) @ W2 + B2


def init_apply_pair():
  """A pure function and its parameters, as in Haiku and stax, with an unused key."""
  def apply(params, key, x):
    del key
    (w1, b1), (w2, b2) = params
    return jax.nn.relu(x.reshape(len(x), -1) @ w1 + b1) @ w2 + b2

  params = jax.tree.map(jnp.asarray, ((W1, B1), (W2, B2)))
  return functools.partial(apply, params, None)


def haiku():
  hk = pytest.importorskip('haiku')
  net = hk.without_apply_rng(hk.transform(
      lambda x: hk.Linear(5)(jax.nn.relu(hk.Linear(12)(hk.Flatten()(x))))))
  assert jax.tree.structure(net.init(KEY, X)) == jax.tree.structure(
      params := {'linear': {'b': B2, 'w': W2}, 'linear_1': {'b': B1, 'w': W1}})
  return jax.tree_util.Partial(net.apply, params)


def linen():
  nn = pytest.importorskip('flax.linen')

  class Net(nn.Module):

    @nn.compact
    def __call__(self, x):
      out = nn.relu(nn.Dense(12, name='first')(x.reshape(len(x), -1)))
      return nn.Dense(5, name='second')(out)

  variables = {'params': {'first': {'kernel': W1, 'bias': B1},
                          'second': {'kernel': W2, 'bias': B2}}}
  return jax.tree_util.Partial(Net().apply, variables)


def nnx():
  nnx_lib = pytest.importorskip('flax.nnx')

  class Net(nnx_lib.Module):

    def __init__(self, rngs):
      self.first = nnx_lib.Linear(16, 12, rngs=rngs)
      self.norm = nnx_lib.BatchNorm(12, use_running_average=True, rngs=rngs)
      self.second = nnx_lib.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
      # The running statistics are 0 and 1; this takes epsilon out again.
      out = self.norm(self.first(x.reshape(len(x), -1))) * (1 + self.norm.epsilon) ** .5
      return self.second(nnx_lib.relu(out))

  net = Net(nnx_lib.Rngs(0))
  for layer, w, b in ((net.first, W1, B1), (net.second, W2, B2)):
    layer.kernel[...], layer.bias[...] = w, b
  net.eval()
  return net


def equinox():
  eqx = pytest.importorskip('equinox')

  class Net(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):  # one example
      return self.second(jax.nn.relu(self.first(x.ravel())))

  keys = jax.random.split(KEY)
  net = Net(eqx.nn.Linear(16, 12, key=keys[0]), eqx.nn.Linear(12, 5, key=keys[1]))
  weights = lambda net: (net.first.weight, net.first.bias, net.second.weight, net.second.bias)
  return jax.vmap(eqx.tree_at(weights, net, tuple(map(jnp.asarray, (W1.T, B1, W2.T, B2)))))


def pytorch():
  torch = pytest.importorskip('torch')
  from at_jax.models import torch_model
  net = torch.nn.Sequential(
      torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 5))
  net.load_state_dict({name: torch.from_numpy(value.T.copy()) for name, value in (
      ('1.weight', W1), ('1.bias', B1), ('3.weight', W2), ('3.bias', B2))})
  return torch_model.TorchModel(net.eval())


MODELS = [linen, *(pytest.param(make, marks=pytest.mark.long)
                   for make in (nnx, equinox, init_apply_pair, haiku, pytorch))]


def attacked(logits_fn):
  """Results of PGD and AutoAttack for the classes that the reference network predicts."""
  y = jnp.argmax(plain()(X), axis=-1)
  pgd = attacks.pgd(logits_fn, X, y, KEY, epsilon=.1, step_size=.03, num_steps=5)
  whole = attacks.autoattack(logits_fn, X, y, KEY, epsilon=.1, batch_size=4, num_steps=5,
                             num_queries=8, attacks=('apgd-ce', 'square'))
  return pgd, whole


@functools.cache
def expected():
  return attacked(plain())


@pytest.mark.parametrize('make', MODELS, ids=lambda make: make.__name__)
def test_every_kind_of_model_is_attacked_alike(make):
  logits_fn = make()
  np.testing.assert_allclose(logits_fn(X), plain()(X), atol=1e-5)
  pgd, whole = attacked(logits_fn)
  assert 0 < whole.robust.sum() < len(X)
  np.testing.assert_allclose(pgd.x, expected()[0].x, atol=1e-5)
  np.testing.assert_array_equal(pgd.success, expected()[0].success)
  np.testing.assert_array_equal(whole.robust, expected()[1].robust)


@pytest.mark.long
def test_an_imported_state_dict_is_attacked():
  model = models.SmallCNN(num_outputs=5, features=(3, 3), hidden=(), padding='SAME')
  names = {'feature_extractor.conv1': (3, 1, 3, 3), 'feature_extractor.conv2': (3, 3, 3, 3),
           'classifier.fc1': (5, 12)}
  arrays = {f'{name}.weight': RANDOM.normal(size=s) for name, s in names.items()}
  arrays |= {f'{name}.bias': RANDOM.normal(size=s[0]) for name, s in names.items()}
  logits_fn = jax.tree_util.Partial(model.apply, importers.from_torch(model, arrays, (4, 4, 1)))
  y = jnp.argmax(logits_fn(X), axis=-1)
  pgd = attacks.pgd(logits_fn, X, y, KEY, epsilon=.5, step_size=.1, num_steps=5)
  whole = attacks.autoattack(logits_fn, X, y, KEY, epsilon=.5, num_steps=5, num_queries=8,
                             attacks=('apgd-ce', 'square'))
  assert pgd.success.any() and whole.clean.all() and not whole.robust.all()

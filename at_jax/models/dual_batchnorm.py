"""Two BatchNorms in one network: statistics, scale and bias of their own for clean and adversarial.

The rest of the parameters is shared. One of the two branches is the model that is deployed: all
that looks at the network in inference mode, every attack of training and of evaluation among it,
goes through that one. An attack through the other would be on a model that nobody uses.
"""

from typing import Any

from flax import traverse_util
import jax

from at_jax.models import deployed as deployed_lib

Array = jax.Array
Variables = dict[str, Any]
NAMES = ('clean', 'adversarial')


def double(variables: Variables) -> Variables:
  """The variables of two equal branches.

  Args:
    variables: of a model with one BatchNorm: 'params' and 'batch_stats'.

  Returns:
    'params' with the parts 'shared', 'clean' and 'adversarial'; 'batch_stats' with the last two.

  Example:
    >>> layer = {'bn': {'scale': 1., 'bias': 0.}, 'conv': {'kernel': 2.}}
    >>> found = double({'params': layer, 'batch_stats': {'bn': {'mean': 0., 'var': 1.}}})
    >>> found['params']['shared'], found['params']['clean']
    ({'conv': {'kernel': 2.0}}, {'bn': {'scale': 1.0, 'bias': 0.0}})

  Source: ours; Xie et al., Adversarial Examples Improve Image Recognition, 2020, section 4.1, has
  two BatchNorms.
  """
  flat = traverse_util.flatten_dict(variables['params'])
  normalises = {path[:-1] for path in traverse_util.flatten_dict(variables['batch_stats'])}
  pick = lambda wanted: traverse_util.unflatten_dict(
      {path: leaf for path, leaf in flat.items() if (path[:-1] in normalises) == wanted})
  return {'params': {'shared': pick(False)} | {name: pick(True) for name in NAMES},
          'batch_stats': {name: variables['batch_stats'] for name in NAMES}}


def single(variables: Variables, name: str) -> Variables:
  """The variables of one branch, as those of a model with one BatchNorm.

  Args:
    variables: as `double` returns them.
    name: 'clean' or 'adversarial'.

  Returns:
    'params' and 'batch_stats'; other entries, such as a change of the logits, as they are.

  Example:
    >>> layer = {'bn': {'scale': 1., 'bias': 0.}, 'conv': {'kernel': 2.}}
    >>> one = {'params': layer, 'batch_stats': {'bn': {'mean': 0., 'var': 1.}}}
    >>> single(double(one), 'adversarial') == one
    True

  Source: ours.
  """
  params = variables['params']
  flat = (traverse_util.flatten_dict(params['shared'])
          | traverse_util.flatten_dict(params[name]))
  return variables | {'params': traverse_util.unflatten_dict(flat),
                      'batch_stats': variables['batch_stats'][name]}


def dual_batchnorm(network: deployed_lib.Network, *, deployed: str) -> deployed_lib.Network:
  """A network with two branches.

  Args:
    network: one with BatchNorm.
    deployed: the branch of `logits` and `deployed`, and of `train` unless it is told another.

  Returns:
    A `network.Network` of variables as `double` returns them. A pass in train mode moves the
    statistics of its branch alone.

  Source: as `double`.
  """
  def init(key: Array, x: Array) -> Variables:
    return double(network.init(key, x))

  def logits(variables: Variables, x: Array) -> Array:
    return network.logits(single(variables, deployed), x)

  def deploy(variables: Variables, x: Array) -> Array:
    return network.deployed(single(variables, deployed), x)

  def train(variables: Variables, x: Array, branch: str | None = None) -> tuple[Array, Any]:
    name = branch or deployed
    out, moved = network.train(single(variables, name), x)
    return out, variables['batch_stats'] | {name: moved}

  return deployed_lib.Network(init, logits, deploy, train, network.fold)

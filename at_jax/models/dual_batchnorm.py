"""Dual BatchNorm: separate BatchNorm layers for clean and for adversarial inputs.

Each of the two branches has its own statistics, scale and bias; all other parameters are shared. One branch
is deployed. Inference mode, and so every attack of training and evaluation, uses the deployed branch.
"""

from typing import Any

from flax import traverse_util
import jax

from at_jax.models import deployed as deployed_lib

Array = jax.Array
Variables = dict[str, Any]
BRANCHES = ('clean', 'adversarial')


def duplicate(variables: Variables) -> Variables:
  """Returns variables with two identical BatchNorm branches.

  Args:
    variables: 'params' and 'batch_stats' of a model with one BatchNorm branch.

  Returns:
    'params' with the entries 'shared', 'clean' and 'adversarial'; 'batch_stats' with 'clean' and
    'adversarial'.

  Example:
    >>> params = {'bn': {'scale': 1., 'bias': 0.}, 'conv': {'kernel': 2.}}
    >>> dual = duplicate({'params': params, 'batch_stats': {'bn': {'mean': 0., 'var': 1.}}})
    >>> dual['params']['shared'], dual['params']['clean']
    ({'conv': {'kernel': 2.0}}, {'bn': {'scale': 1.0, 'bias': 0.0}})

  Reference: C. Xie et al., Adversarial Examples Improve Image Recognition, 2020, section 4.1.
  """
  flat = traverse_util.flatten_dict(variables['params'])
  batchnorms = {path[:-1] for path in traverse_util.flatten_dict(variables['batch_stats'])}
  part = lambda of_batchnorm: traverse_util.unflatten_dict(
      {path: leaf for path, leaf in flat.items() if (path[:-1] in batchnorms) == of_batchnorm})
  return {'params': {'shared': part(False)} | {branch: part(True) for branch in BRANCHES},
          'batch_stats': {branch: variables['batch_stats'] for branch in BRANCHES}}


def select(variables: Variables, branch: str) -> Variables:
  """Returns the variables of one branch, in the structure of a model with one BatchNorm branch.

  Args:
    variables: variables with the structure that `duplicate` returns.
    branch: 'clean' or 'adversarial'.

  Returns:
    'params' and 'batch_stats' of the branch. Other collections, such as a logit adjustment, are unchanged.

  Example:
    >>> params = {'bn': {'scale': 1., 'bias': 0.}, 'conv': {'kernel': 2.}}
    >>> variables = {'params': params, 'batch_stats': {'bn': {'mean': 0., 'var': 1.}}}
    >>> select(duplicate(variables), 'adversarial') == variables
    True
  """
  params = variables['params']
  flat = traverse_util.flatten_dict(params['shared']) | traverse_util.flatten_dict(params[branch])
  return variables | {'params': traverse_util.unflatten_dict(flat),
                      'batch_stats': variables['batch_stats'][branch]}


def dual_batchnorm(network: deployed_lib.Network, *, deployed: str) -> deployed_lib.Network:
  """Returns a network with two BatchNorm branches.

  Args:
    network: a network with BatchNorm.
    deployed: the branch of `logits` and `deployed`, and the default branch of `train`.

  Returns:
    A `Network` whose variables have the structure that `duplicate` returns. `train` updates the statistics of
    its branch only.

  Example:
    >>> import jax.numpy as jnp
    >>> from at_jax import models
    >>> model = models.SmallCNN(num_outputs=2, features=(4, 4), hidden=(), padding='SAME', batch_norm=True)
    >>> network = dual_batchnorm(models.deploy(model, has_dummies=False), deployed='clean')
    >>> x = jnp.ones((2, 8, 8, 1))
    >>> variables = network.init(jax.random.key(0), x)
    >>> _, statistics = network.train(variables, x, branch='adversarial')
    >>> [bool((statistics[branch]['bn1']['mean'] == 0).all()) for branch in BRANCHES]
    [True, False]

  Reference: as for `duplicate`.
  """
  def init(key: Array, x: Array) -> Variables:
    return duplicate(network.init(key, x))

  def logits(variables: Variables, x: Array) -> Array:
    return network.logits(select(variables, deployed), x)

  def deployed_logits(variables: Variables, x: Array) -> Array:
    return network.deployed(select(variables, deployed), x)

  def train(variables: Variables, x: Array, branch: str | None = None) -> tuple[Array, Any]:
    branch = branch or deployed
    out, statistics = network.train(select(variables, branch), x)
    return out, variables['batch_stats'] | {branch: statistics}

  return deployed_lib.Network(init, logits, deployed_logits, train, network.fold)

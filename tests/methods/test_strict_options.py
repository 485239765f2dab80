"""Methods and models under JAX's strict options: no implicit promotion of dtypes or ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax import models
from at_jax.methods import (
  OBJECTIVES,
  awp,
  cfa,
  consistency,
  ducat,
  entropy_sgd,
  finetune,
  gairat,
  mail,
  objective,
  precision,
  weight_averaging,
)
from at_jax.models import logit_adjustment


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield


Z, Y = np.zeros((4, 6), np.float32), np.arange(4)
forward = lambda x, batch_stats, branch=None: (x, batch_stats)
options = dict(distance='kl', anchor='squared', anchor_weight=.5)
CALLS = {
    **{name: lambda f=f: f(forward, {}, Z, jnp.concatenate([Z, Z]) if f is gairat.gair_trades else Z, Y)
       for name, f in OBJECTIVES.items() if name != 'consistency'},
    'js': lambda: consistency.js_divergence(Z, Z),
    'ducat': lambda: ducat.loss(Z, Z, Y % 3),
    'finetune': lambda: finetune.finetune(forward, {}, Z, Z, Y, reference=Z, **options),
    'gairat': lambda: gairat.geometry_weights(Y, num_steps=10, lam=-1.),
    'mail': lambda: mail.margin_weights(Z, Y, bias=0., slope=2.),
    'cfa': lambda: (cfa.count(cfa.zero_counts(6), Y > 1, Y), cfa.temper(Z, Y, jnp.ones(6)),
                    cfa.class_weights(jnp.ones(6), Y, base=.5)),
    'mean_loss': lambda: objective.mean_loss(objective.Outcome(Z[:, 0], Z[:, 0], Z, {}), Z[:, 0],
                                             weights_on='both', beta=6., betas=jnp.ones(4)),
    'adjust': lambda: logit_adjustment.adjust(Z, logit_adjustment.identity(6)),
    'awp': lambda: awp.awp_value_and_grad(lambda p: jnp.sum(p['w'].astype(float)), gamma=.1)(PARAMS),
}
PARAMS = {'w': jnp.ones((3, 2), jnp.bfloat16), 'b': jnp.ones(2)}
OPTIMIZERS = {
    'ema': weight_averaging.ema(.9), 'swa': weight_averaging.swa(1, every=2),
    'sgd': precision.in_float32(optax.sgd(.1, .9)),
    'entropy_sgd': entropy_sgd.entropy_sgd(optax.sgd(1., .9), inner_steps=3, key=jax.random.key(0))}


@pytest.mark.parametrize('name', CALLS)
def test_methods_promote_nothing(name):
  jax.eval_shape(CALLS[name])


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers_of_bfloat16_promote_nothing(name):
  def step(params):
    state = OPTIMIZERS[name].init(params)
    updates, state = OPTIMIZERS[name].update(params, state, params)
    return precision.apply_updates(params, updates), weight_averaging.eval_params(state, params)
  moved, evaluated = jax.eval_shape(step, PARAMS)
  for tree in (moved, evaluated):
    assert jax.tree.map(lambda leaf: leaf.dtype, tree) == {'w': jnp.bfloat16, 'b': jnp.float32}


def test_normalised_models_promote_nothing():
  # Not in bfloat16: there flax's own BatchNorm promotes.
  x = jnp.zeros((2, 8, 8, 3))
  for model in (models.SmallCNN(num_outputs=3, features=(4, 4), padding='SAME', batch_norm=True),
                models.PreActResNet18(num_outputs=3, width=4, stage_sizes=(1, 1))):
    model = model.clone(normalize=((.1, .2, .3), (.3, .2, .1)))
    jax.eval_shape(lambda model=model: model.apply(
        model.init(jax.random.key(0), x), x, train=True, mutable=['batch_stats']))

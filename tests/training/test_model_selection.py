"""The fit of a logit adjustment on held-out examples."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from at_jax.config import fields as fields_lib
from at_jax.datasets import pipeline
from at_jax.models import deployed as deployed_lib
from at_jax.models import logit_adjustment
from at_jax.training import model_selection


def two_classes(kind, **fields):
  """A run with class 0 below a pixel value of .4 and class 1 above, where .5 would be fair; ε is .1.

  z₁ − z₀ = 4(x − .4), so a bias b₀ − b₁ moves the boundary to .4 + (b₀ − b₁)/4.
  """
  def logits(variables, x):
    x = x.reshape(len(x), -1)
    return variables['params'] * jnp.concatenate([.4 - x, x - .4], axis=1)

  def deployed(variables, x):
    z = logits(variables, x)
    return logit_adjustment.adjust(z, variables['inference']) if 'inference' in variables else z

  c = fields_lib.default()
  c.attack.update(epsilon_255=25.5, step_size_255=10.)
  c.validate.update(num_steps=5, batch_size=40)
  c.inference.update(kind=kind, **fields)
  x = np.concatenate([np.linspace(.15, .35, 20), np.linspace(.65, .85, 20)])
  split = pipeline.Split(np.round(x * 255).astype(np.uint8).reshape(-1, 1, 1, 1),
                         np.repeat(np.arange(2, dtype=np.int32), 20))
  network = deployed_lib.Network(None, logits, deployed, None, lambda z: z)
  dataset = types.SimpleNamespace(validation=split, num_classes=2)
  run = types.SimpleNamespace(config=c, network=network, dataset=dataset,
                              keys={'evaluate': jax.random.key(0)})
  return run, {'params': jnp.float32(2.)}


def test_fitted_bias_raises_the_worst_class():
  run, variables = two_classes('bias', rate=.5)
  adjusted, summary = model_selection.fit(run, variables)
  before, after = summary['validation']['before'], summary['validation']['after']
  # x + .1 < .4 holds up to .3: 15 of the 20 examples of class 0 are robust, and all of class 1.
  assert before['by_class'] == {'clean': [1., 1.], 'worst_case': [.75, 1.], 'worst': 0}
  # With a boundary from .35 + .1 to .65 − .1 all examples are robust.
  assert after['worst_class'] == 1 and summary['round'] > 0
  b = adjusted['inference']['bias']
  assert .45 < .4 + (b[0] - b[1]) / 4 < .55
  np.testing.assert_array_equal(summary['bias'], b)
  again, _ = model_selection.fit(run, variables)
  jax.tree.map(np.testing.assert_array_equal, again, adjusted)


def test_fit_without_an_improvement_is_the_identity():
  run, variables = two_classes('bias', rate=1e-6, rounds=2)
  adjusted, summary = model_selection.fit(run, variables)
  assert summary['round'] == 0
  jax.tree.map(np.testing.assert_array_equal, adjusted['inference'], logit_adjustment.identity(2))
  run, variables = two_classes('none')
  assert model_selection.fit(run, variables) == (variables, None)

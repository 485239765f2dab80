"""Adversarial attacks as pure functions; they need only jax and numpy.

Any function `f32[B, ...] -> f32[B, C]` from inputs to logits can be attacked:

>>> import jax, jax.numpy as jnp
>>> from at_jax import attacks
>>> weights = jnp.array([[1., -1.], [2., -2.]])
>>> x, y = jnp.array([[.6, .5]]), jnp.array([0])
>>> result = attacks.pgd(lambda x: x @ weights - jnp.array([1., -1.]), x, y, jax.random.key(0),
...                      epsilon=.25, step_size=.1, num_steps=10)
>>> print(result.success, result.x.round(2))
[ True] [[0.35 0.25]]
"""

from at_jax.attacks import losses, norms
from at_jax.attacks._diagnostics import check_model
from at_jax.attacks._stepper import LogitsFn
from at_jax.attacks.apgd import apgd
from at_jax.attacks.autoattack import Audit, AutoAttackResult, Passes, Progress, autoattack
from at_jax.attacks.fab import fab
from at_jax.attacks.fmn import MinimumNormResult, fmn, robust_accuracy
from at_jax.attacks.pgd import AttackResult, fgsm, gaussian_start, pgd
from at_jax.attacks.square import square

__all__ = ['AttackResult', 'Audit', 'AutoAttackResult', 'LogitsFn', 'MinimumNormResult', 'Passes', 'Progress',
           'apgd', 'autoattack', 'check_model', 'fab', 'fgsm', 'fmn', 'gaussian_start', 'losses', 'norms',
           'pgd', 'robust_accuracy', 'square']

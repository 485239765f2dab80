"""How parameters move: optax transformations, and a wrapper of value-and-grad.

They compose with each other and with any optax optimizer. Two rules of order: an average is the
*last* of a chain, for it reads the finished update; and under EntropySGD it belongs inside `outer`,
where it averages the anchors and not the steps of the Langevin chain. `eval_params` then finds what
to evaluate:

>>> import jax, jax.numpy as jnp, optax
>>> from at_jax import transforms
>>> outer = optax.chain(optax.sgd(1., momentum=.9, nesterov=True), transforms.ema(.995))
>>> optimizer = transforms.entropy_sgd(outer, inner_steps=5, key=jax.random.key(0))
>>> params = {'w': jnp.ones(3)}
>>> opt_state = optimizer.init(params)
>>> value_and_grad = transforms.awp_value_and_grad(lambda p: jnp.sum(p['w'] ** 2), gamma=.01)
>>> @jax.jit
... def step(params, opt_state):
...   value, gradient = value_and_grad(params)
...   updates, opt_state = optimizer.update(gradient, opt_state, params)
...   return optax.apply_updates(params, updates), opt_state
>>> for _ in range(100):
...   params, opt_state = step(params, opt_state)
>>> print(jnp.abs(transforms.eval_params(opt_state, params)['w']).max() < .01)
True
"""

from at_jax.transforms.averaging import AverageState
from at_jax.transforms.averaging import FairAverageState
from at_jax.transforms.averaging import ema
from at_jax.transforms.averaging import eval_params
from at_jax.transforms.averaging import no_average
from at_jax.transforms.averaging import swa
from at_jax.transforms.averaging import take_in
from at_jax.transforms.entropy import EntropySGDState
from at_jax.transforms.entropy import entropy_sgd
from at_jax.transforms.perturbation import awp_value_and_grad
from at_jax.transforms.perturbation import perturb

__all__ = ['AverageState', 'EntropySGDState', 'FairAverageState', 'awp_value_and_grad', 'ema',
           'entropy_sgd', 'eval_params', 'no_average', 'perturb', 'swa', 'take_in']

"""Free-AT: one backward pass gives the gradients of the weights and of the examples.

Each minibatch is used m times in a row (`config.replays`). Each time, with δ carried over:

  θ ← θ − η ∇_θ mean CE(f(x + δ), y)
  δ ← clip(P(δ + ε · sign ∇_x CE(f(x + δ), y)))

P clips to ±ε, and clip keeps x + δ within the bounds. Both gradients are those of the same θ and δ, in
train mode. The next minibatch begins with the δ of the last one, clipped to its own bounds. m replays cost m
forward and m backward passes of an example, so the paper divides the number of epochs by m.

Reference: Shafahi et al., Adversarial Training for Free!, 2019, algorithm 1, and its released code.
"""

from typing import Any

import jax
import jax.numpy as jnp

from at_jax.methods import objective, pgd_at

Array = jax.Array


def free_at(forward: objective.Forward, batch_stats: Any, x: Array, x_adv: Array, y: Array
            ) -> objective.Outcome:
  """The loss of Free-AT: that of PGD-AT, CE(f(x + δ), y).

  Args:
    forward: the network in train mode.
    batch_stats: its BatchNorm statistics.
    x: ignored.
    x_adv: f32[B, ...], x + δ.
    y: i32[B].

  Returns:
    An `objective.Outcome` without a regulariser.

  Example:
    >>> f = lambda x, batch_stats: (x, batch_stats)
    >>> print(free_at(f, {}, None, jnp.zeros((1, 2)), jnp.array([0])).fit)
    [0.6931472]

  Reference: Shafahi et al., Adversarial Training for Free!, 2019, algorithm 1.
  """
  return pgd_at.pgd_at(forward, batch_stats, x, x_adv, y)


def ascend(x: Array, x_adv: Array, gradient: Array, epsilon: float | Array) -> Array:
  """The perturbation after a step of size ε, in the ball and the bounds.

  Args:
    x: f32[B, ...], the examples, from 0 to 1.
    x_adv: f32[B, ...], x + δ, where the gradient was taken.
    gradient: f32[B, ...], of the loss at x_adv.
    epsilon: ε, in units of x.

  Returns:
    f32[B, ...], the new δ.

  Example:
    >>> x = jnp.array([[.5, .5, 0.]])
    >>> print(ascend(x, x + jnp.array([[.1, -.1, 0.]]), jnp.array([[2., 3., -1.]]), .1).round(6))
    [[0.1 0.  0. ]]

  Reference: Shafahi et al., Adversarial Training for Free!, 2019, algorithm 1.
  """
  moved = jnp.clip(x_adv - x + epsilon * jnp.sign(gradient), -epsilon, epsilon)
  return jnp.clip(x + moved, 0, 1) - x

"""FGSM-RS, fast adversarial training: one long step from a random point of the ball.

  x' = P(x + η + 1.25 ε · sign ∇ CE(f(x + η), y))          η uniform in the ball of radius ε

P projects onto the ball and clips to the bounds, as x + η is clipped before the gradient. Training on x'
is `pgd_at.pgd_at`: a step costs two forward and two backward passes of an example, PGD-AT with K steps
K + 1 of each.

Steps that are much longer than ε, many epochs and large radii bring catastrophic overfitting: PGD breaks a
model that this attack does not. A run warns of it after the epoch (`training.epoch_hooks`).

Reference: Wong et al., Fast Is Better Than Free: Revisiting Adversarial Training, 2020, algorithm 3, and
its released code. The code attacks the network in train mode; here every attack sees inference mode.
"""

from at_jax import attacks
from at_jax.methods import inner_attacks

STEP = 1.25  # the step, in units of ε


def fgsm_rs(*, epsilon: float, step_size: float | None = None, num_steps: int = 1,
            **options) -> inner_attacks.Attack:
  """The inner attack of FGSM-RS. Its step follows the radius of each example.

  Args:
    epsilon: radius, in units of x.
    step_size: ignored; the step is 1.25 ε.
    num_steps: 1.
    **options: keyword arguments of `attacks.pgd`: norm, decide, start.

  Returns:
    An `inner_attacks.Attack`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> attack = fgsm_rs(norm='linf', epsilon=.1)
    >>> x, y = jnp.array([[.5, .5]]), jnp.array([0])
    >>> found = attack(lambda x: x, x, y, jax.random.key(0), None).x  # logits x: lower x_0, raise x_1
    >>> print(found[0, 0] < .5 < found[0, 1], jnp.max(jnp.abs(found - x)) < .1001)
    True True

  Reference: Wong et al., Fast Is Better Than Free: Revisiting Adversarial Training, 2020, algorithm 3.
  """
  del step_size

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    radius = scale * epsilon
    return attacks.pgd(logits_fn, x, y, key, tau=tau, index=index, epsilon=radius,
                       step_size=STEP * radius, num_steps=num_steps, **options)
  return attack

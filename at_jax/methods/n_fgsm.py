"""N-FGSM: one step of size ε from an example with strong noise, and no projection onto the ball.

  x' = clip(x + η + ε · sign ∇ CE(f(x + η), y))          η uniform in the ball of radius k ε, k = 2

clip keeps x + η and x' within the bounds only, so x' may be (k + 1) ε away from x. Training on x' is
`pgd_at.pgd_at`, with the passes of FGSM-RS (`fgsm_rs`). The noise takes the place of clean examples and
prevents catastrophic overfitting at larger radii than the start of FGSM-RS does.

Reference: de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training, 2022,
algorithm 1, and its released code. The code attacks the network in train mode; here every attack sees
inference mode.
"""

from at_jax import attacks
from at_jax.methods import inner_attacks


def n_fgsm(*, norm: str, epsilon: float, step_size: float | None = None, num_steps: int = 1,
           noise: float = 2., **options) -> inner_attacks.Attack:
  """The inner attack of N-FGSM. Noise and step follow the radius of each example.

  Args:
    norm: norm of the noise and of the step; the paper's is 'linf'.
    epsilon: radius, in units of x.
    step_size: ignored; the step is ε.
    num_steps: 1.
    noise: k, the radius of the noise in units of ε.
    **options: keyword arguments of `attacks.pgd`: decide.

  Returns:
    An `inner_attacks.Attack`. Its x is within the bounds and within (k + 1) ε of the example.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> attack = n_fgsm(norm='linf', epsilon=.1)
    >>> x, y = jnp.full((1, 100), .5), jnp.array([0])
    >>> found = attack(lambda x: x[:, :2], x, y, jax.random.key(0), None).x
    >>> print(.1 < jnp.max(jnp.abs(found - x)) < .3001)
    True

  Reference: de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training,
  2022, algorithm 1.
  """
  del step_size

  def attack(logits_fn, x, y, key, index, tau=None, epsilon=epsilon, scale=1.):
    radius = scale * epsilon
    start = x + inner_attacks.scaled(noise * radius, inner_attacks.unit_noise(x, key, index, norm=norm))
    # No point that the step can reach is outside this ball, so PGD's projection changes nothing.
    return attacks.pgd(logits_fn, x, y, key, tau=tau, index=index, start=start, norm=norm,
                       epsilon=(noise + 1) * radius, step_size=radius, num_steps=num_steps, **options)
  return attack

"""Functions of users are judged by what they return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.attacks import _functions, losses

CE, ONES = losses.cross_entropy, lambda *shape: jnp.ones(shape)
# Losses for B examples of 5 classes, with their further arguments.
FINE = {
    'cross-entropy': lambda b: (CE,),
    'a weight per example': lambda b: (lambda z, y, w: w * CE(z, y), ONES(b)),
    'a weight per example that is closed over': lambda b: (lambda z, y: ONES(b) * CE(z, y),),
    'a weight per example that is closed over, and top-k': lambda b: (
        lambda z, y: ONES(b) * jax.lax.top_k(z, 5)[0][:, 0],),
    'a weight per class': lambda b: (lambda z, y: ONES(5)[y] * CE(z * ONES(5), y),),
    'clean logits': lambda b: (lambda z, y, clean: optax.kl_divergence(z, jax.nn.softmax(clean)), ONES(b, 5)),
    'a number and a pytree': lambda b: (lambda z, y, t, by: t * CE(z, y) + by['w'], 2., {'w': ONES(b)}),
    'features of B columns': lambda b: (lambda z, y, f: CE(z, y) + f.sum(-1), ONES(b, b)),
}
WRONG = {
    'mean': (lambda b: (lambda z, y: CE(z, y).mean(),), 'gives shape \\(\\).*without the mean'),
    'column': (lambda b: (lambda z, y: CE(z, y)[:, None],), 'one number per example'),
    'by class': (lambda b: (lambda z, y: z,), 'one number per example'),
    'one-hot': (lambda b: (optax.softmax_cross_entropy,), 'softmax_cross_entropy fails on'),
    'one-hot, by hand': (lambda b: (lambda z, y: -(y * jax.nn.log_softmax(z)).sum(-1),), 'fails on'),
    'weights along classes': (lambda b: (lambda z, y, w: (w * z).sum(-1), ONES(b)), 'fails on'),
    'classes': (lambda b: (lambda z, y: z.argmax(-1),), 'dtype int32'),
    'tuple': (lambda b: (lambda z, y: (CE(z, y), z),), 'gives a tuple'),
    'Python if': (lambda b: (lambda z, y: CE(z, y) if z[0, 0] > 0 else -CE(z, y),), 'cannot be traced'),
}


# One example and as many as classes are the sizes at which broadcasting hides a wrong loss.
@pytest.mark.parametrize('num_examples', [1, 3, 5])
def test_shapes_of_losses_are_checked(num_examples):
  logits, y = ONES(num_examples, 5), np.zeros(num_examples, np.int32)
  for name, make in FINE.items():
    loss, *args = make(num_examples)
    assert _functions.check_loss(loss, logits, y, *args) is None, name
  for name, (make, message) in WRONG.items():
    loss, *args = make(num_examples)
    with pytest.raises(ValueError, match=message) as caught:
      _functions.check_loss(loss, logits, y, *args)
    assert str(caught.value).startswith('loss ') and '\n' not in str(caught.value), name


def test_errors_of_a_loss_are_shown_with_their_cause():
  def broken(z, y):
    raise KeyError('temperature')

  with pytest.raises(ValueError, match='loss = broken fails on .*KeyError: .temperature') as caught:
    _functions.check_loss(broken, ONES(3, 5), np.zeros(3, np.int32))
  assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize('closes_over, traces', [(False, 1), (True, 2)])
@pytest.mark.parametrize('num_examples', [3, 5])
def test_a_loss_that_is_fine_is_traced_at_most_twice(num_examples, closes_over, traces):
  calls, weights = [], ONES(num_examples)

  def loss(z, y):
    calls.append(z.shape)
    return weights * CE(z, y) if closes_over else CE(z, y)

  _functions.check_loss(loss, ONES(num_examples, 5), np.zeros(num_examples, np.int32))
  assert len(calls) == traces

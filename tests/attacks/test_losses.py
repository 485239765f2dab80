"""Losses against values computed by hand, and the check that a loss gives one number per example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax.attacks import _model, losses
from at_jax.evaluation import attack_names

# C = 3 and y = 0, whose dummy is output 3; the best of the others is output 5, a dummy, at 5.
LOGITS, Y = jnp.array([[3., 1., 2., .5, -1., 5.]]), jnp.array([0])
# 5 − λ·3 − (1 − λ)·½ at λ = 0, .2, .5 and 1.
BY_HAND = {0.: 4.5, .2: 4., .5: 3.25, 1.: 2.}


@pytest.mark.parametrize('weight, expected', BY_HAND.items())
def test_weighted_margin_by_hand(weight, expected):
  np.testing.assert_allclose(losses.weighted_dummy_margin(LOGITS, Y, weight), [expected], rtol=1e-6)
  np.testing.assert_allclose(losses.dummy_margin(weight)(LOGITS, Y), [expected], rtol=1e-6)
  # The push is λ against the class, 1 − λ against its dummy, and all of it towards the rival.
  slope = jax.grad(lambda z: losses.weighted_dummy_margin(z, Y, weight)[0])(LOGITS)
  np.testing.assert_allclose(slope, [[-weight, 0, 0, weight - 1, 0, 1]], atol=1e-6)


def test_weights_may_differ_between_examples():
  found = losses.weighted_dummy_margin(jnp.tile(LOGITS, (4, 1)), jnp.zeros(4, int),
                                       jnp.array(list(BY_HAND)))
  np.testing.assert_allclose(found, list(BY_HAND.values()), rtol=1e-6)


def test_a_class_and_its_dummy_are_not_rivals():
  # y = 2: both of its outputs are above the best of the others, 3 of output 0. 3 − .2·2 − .8·5.
  np.testing.assert_allclose(losses.weighted_dummy_margin(LOGITS, jnp.array([2]), .2), [-1.4],
                             rtol=1e-5)


def test_the_name_of_an_attack_carries_its_weight():
  attack = attack_names.attack(attack_names.parse('dummy0.2_pgd1'), norm='linf', epsilon=.1, step_size=.1)
  same = lambda x: jnp.tile(LOGITS, (len(x), 1))  # wherever the attack goes
  found = attack(same, jnp.full((1, 2), .5), Y, jax.random.key(0), None)
  np.testing.assert_allclose(found.loss, [BY_HAND[.2]], rtol=1e-6)


def test_soft_dummy_margin_has_a_gradient_in_both_halves():
  # e^z = (3, 2 | 1, 4) with C = 2, y = 0: s_0 = ln(3 + 1), s_1 = ln(2 + 4), their margin ln(6/4).
  # Of each s the gradient is each output's share of its sum: 3/4 and 1/4, 2/6 and 4/6.
  z = jnp.log(jnp.array([[3., 2., 1., 4.]]))
  value, slope = jax.value_and_grad(lambda z: losses.soft_dummy_margin(z, Y)[0])(z)
  np.testing.assert_allclose(value, np.log(1.5), rtol=1e-5)
  np.testing.assert_allclose(slope, [[-3 / 4, 2 / 6, -1 / 4, 4 / 6]], rtol=1e-5)


def test_losses_with_a_parameter_are_cached_and_do_not_underflow():
  assert losses.scaled(20.) is losses.scaled(20.)
  assert losses.dummy_margin(.5) is losses.dummy_margin(.5)
  confident, y = jnp.array([[300., 0., 1.]]), jnp.array([0])
  slope = lambda loss: np.abs(jax.grad(lambda z: loss(z, y)[0])(confident)).max()
  assert slope(losses.masking_scaled(1.)) == 0
  assert slope(losses.scaled(1.)) > .5
  np.testing.assert_allclose(losses.scaled(1e4)(confident, y), losses.margin(confident, y))


def test_gradient_of_scaled_has_the_direction_of_cross_entropy():
  # (1 - p_y) / T times the gradient of the bracket, times T for the division by the scale.
  with jax.enable_x64(True):
    logits, y = jnp.array([[1., .3, -.5, .2]]), jnp.array([0])
    for scale in (.2, 1., 5.):
      plain = jax.grad(lambda z, scale=scale: losses.cross_entropy(scale * z, y)[0])(logits)
      scaled = jax.grad(lambda z, scale=scale: losses.scaled(scale)(z, y)[0])(logits)
      wrong = 1 - jax.nn.softmax(scale * logits)[0, 0]
      np.testing.assert_allclose(plain, scale * wrong * scaled, rtol=1e-10)


def test_dlr_of_few_classes_by_hand():
  # With 2 classes DLR is the margin, with 3 it is -(z_y - rival) / (3 - 1).
  dlr, targeted_dlr = losses.dlr, losses.targeted_dlr
  two, three = jnp.array([[3., 1.], [1., 3.]]), jnp.array([[3., 1., 2.]] * 3)
  zeros, classes = jnp.zeros(2, int), jnp.arange(3)
  np.testing.assert_allclose(dlr(two, zeros), [-2, 2])
  np.testing.assert_allclose(dlr(three, classes), [-.5, 1, .5])
  # Below 4 classes the targeted one is z_t - z_y, so its slope is 1 at t and -1 at y.
  np.testing.assert_allclose(targeted_dlr(two, zeros, zeros + 1), [-2, 2])
  np.testing.assert_allclose(targeted_dlr(three, classes, jnp.array([1, 2, 0])), [-2, 1, 1])
  slope = lambda logits, *classes: jax.grad(lambda z: targeted_dlr(z, *classes).sum())(logits)
  np.testing.assert_array_equal(slope(two, zeros, zeros + 1), [[-1, 1], [-1, 1]])
  np.testing.assert_array_equal(
      slope(three, classes, jnp.array([1, 2, 0])), [[-1, 1, 0], [0, -1, 1], [1, 0, -1]])
  np.testing.assert_array_equal(
      jax.grad(lambda z: dlr(z, zeros).sum())(two), [[-1, 1], [-1, 1]])


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
    assert _model.check_loss(loss, logits, y, *args) is None, name
  for name, (make, message) in WRONG.items():
    loss, *args = make(num_examples)
    with pytest.raises(ValueError, match=message) as caught:
      _model.check_loss(loss, logits, y, *args)
    assert str(caught.value).startswith('loss ') and '\n' not in str(caught.value), name


def test_errors_of_a_loss_are_shown_with_their_cause():
  def broken(z, y):
    raise KeyError('temperature')

  with pytest.raises(ValueError, match='loss = broken fails on .*KeyError: .temperature') as caught:
    _model.check_loss(broken, ONES(3, 5), np.zeros(3, np.int32))
  assert isinstance(caught.value.__cause__, KeyError)

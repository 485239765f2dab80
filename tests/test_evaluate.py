"""Evaluation: whose decision counts, and that batches do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax import data
from at_jax import dummy
from at_jax import evaluate
from at_jax import network as network_lib


def linear_network(has_dummies):
  """Logits w·x of 'params', so that closed forms say what each attack finds."""
  fold = dummy.fold if has_dummies else lambda z: z
  logits = lambda variables, x: x.reshape(len(x), -1) @ variables['params']
  return network_lib.Network(None, logits, lambda v, x: fold(logits(v, x)), None, fold)


def one_pixel(values, labels):
  """Images of one pixel."""
  images = np.asarray(values, np.uint8).reshape(-1, 1, 1, 1)
  return data.Split(images, np.asarray(labels, np.int32))


run = functools.partial(evaluate.evaluate, names=['fgsm', 'pgd4', 'pgd4x2'], norm='linf',
                        epsilon=.1, step_size=.05, batch_size=4)


@pytest.mark.parametrize('name, expected', [
    ('fgsm', evaluate.Spec(1, 1, False)), ('pgd1', evaluate.Spec(1, 1, True)),
    ('pgd100x3', evaluate.Spec(100, 3, True)), ('pgd0', None), ('pgd', None), ('pgd5x0', None),
    ('PGD5', None), ('', None), (7, None)])
def test_names_of_attacks(name, expected):
  assert evaluate.parse(name) == expected


def test_accuracies_of_a_model_with_a_known_answer():
  # Predicts 1 where the pixel is above .5 (z = (0, x − .5) through a bias pixel is not needed: the
  # two logits are .5·(1 − x) and .5·x). With ε = .1 a pixel stands if it is over .1 away from .5.
  network = linear_network(False)
  network = network._replace(
      deployed=lambda v, x: .5 * jnp.concatenate([1 - x, x], axis=1).reshape(len(x), 2))
  network = network._replace(logits=network.deployed)
  values = [10, 90, 110, 120, 135, 150, 160, 250, 140]  # in 255ths; 127.5 ± 25.5 is within reach
  labels = [0, 0, 0, 0, 1, 1, 1, 1, 0]  # the last one is wrong as it is
  report = run(network, {'params': jnp.zeros(())}, one_pixel(values, labels), jax.random.key(0),
               has_dummies=False)
  np.testing.assert_array_equal(report.clean, [1, 1, 1, 1, 1, 1, 1, 1, 0])
  expected = [1, 1, 0, 0, 0, 0, 1, 1, 0]
  for verdicts in (*report.robust.values(), report.worst_case):
    np.testing.assert_array_equal(verdicts, expected)
  assert report.authors == {}
  accuracies = report.accuracies()
  assert accuracies['n'] == 9 and accuracies['worst_case'] == pytest.approx(4 / 9)
  # Of class 0 four of five are right and two stand; of class 1 four and two of four.
  assert accuracies['by_class'] == {'clean': [.8, 1.], 'worst_case': [.4, .5], 'worst': 0}
  assert accuracies['worst_class'] == .4


def test_a_class_without_an_example_is_null():
  network = linear_network(False)._replace(deployed=lambda v, x: jnp.eye(3)[jnp.full(len(x), 2)])
  report = run(network, {}, one_pixel([1, 2], [2, 0]), jax.random.key(0), names=[],
               has_dummies=False, batch_size=2)
  found = report.accuracies()
  assert found['by_class'] == {'clean': [0., None, 1.], 'worst_case': [0., None, 1.], 'worst': 0}
  assert found['worst_class'] == 0


def dummy_network():
  """C = 2 on one pixel x: class 0 up to .5, then its dummy until .7, then class 1.

  Through the raw logits with label 0, an attack stops caring at x > .5, where the dummy takes over
  and is recovered into class 0; only the folded logits show the way on to .7.
  """
  def logits(variables, x):
    x = x.reshape(-1)
    hat = lambda low, high: 2. - jnp.maximum(jnp.maximum(low - x, x - high), 0) * 40
    nothing = jnp.full_like(x, -30.)
    return jnp.stack([hat(0., .5), hat(.7, 1.), hat(.5, .7), nothing], axis=-1)
  return network_lib.Network(None, logits, lambda v, x: dummy.fold(logits(v, x)), None, dummy.fold)


def test_the_deployed_decision_counts_and_the_authors_protocol_stands_beside():
  network = dummy_network()
  split = one_pixel([round(.65 * 255)] * 4, [0, 0, 0, 0])  # recognised by its dummy
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True)
  assert report.clean.all()
  assert not report.robust['pgd4'].any()  # .7 is within ε = .1
  # The raw loss of label 0 grows away from class 0, towards .7 and class 1, or is flat; whatever it
  # finds is judged by the deployed decision, and the worst case is the worst of all.
  assert set(report.authors) == set(report.robust)
  np.testing.assert_array_equal(
      report.worst_case, np.logical_and.reduce([report.clean, *report.robust.values(),
                                                *report.authors.values()]))


def test_the_authors_protocol_attacks_what_is_wrong_already():
  # Label 1, recognised as 0: the raw attack on label 1 pushes anywhere; our verdict starts from
  # clean, so it is never robust, whatever the protocol says.
  report = run(dummy_network(), {'params': jnp.zeros(())}, one_pixel([60], [1]), jax.random.key(0),
               has_dummies=True)
  assert not report.clean.any() and not report.worst_case.any()
  assert not any(v.any() for v in report.robust.values())


def test_neither_batch_size_nor_order_changes_a_verdict():
  digits = data.load('digits').test
  weights = jax.random.normal(jax.random.key(1), (64, 10))
  network = linear_network(False)
  verdicts = []
  for batch_size in (1, 7, 50):
    split = data.Split(digits.images[:50], digits.labels[:50])
    report = evaluate.evaluate(
        network, {'params': weights}, split, jax.random.key(0), names=['pgd3', 'pgd3x2'],
        norm='l2', epsilon=.5, step_size=.2, batch_size=batch_size, has_dummies=False)
    verdicts.append(np.stack([report.clean, *report.robust.values()]))
  np.testing.assert_array_equal(verdicts[0], verdicts[1])
  np.testing.assert_array_equal(verdicts[0], verdicts[2])


def test_progress_ends_at_the_accuracy():
  said = {}
  split = one_pixel([10, 90, 110, 120, 135], [0, 0, 0, 0, 1])
  network = linear_network(False)._replace(
      deployed=lambda v, x: jnp.concatenate([1 - x, x], axis=1).reshape(len(x), 2))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=False,
               progress=lambda name, done, total, accuracy: said.update({name: (done, total,
                                                                               accuracy)}))
  assert said['clean'] == (5, 5, 1.)
  assert said['pgd4'][0] == said['pgd4'][1]
  assert said['pgd4'][2] == pytest.approx(report.robust['pgd4'].mean())

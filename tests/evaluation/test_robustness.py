"""Evaluation: whose decision counts, and that batches do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _loops
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, robustness
from at_jax.methods import ducat
from at_jax.models import deployed as deployed_lib


def linear_network(has_dummies):
  """Logits w·x of 'params', so that closed forms say what each attack finds."""
  fold = ducat.fold if has_dummies else lambda z: z
  logits = lambda variables, x: x.reshape(len(x), -1) @ variables['params']
  return deployed_lib.Network(None, logits, lambda v, x: fold(logits(v, x)), None, fold)


def one_pixel(values, labels):
  """Images of one pixel."""
  images = np.asarray(values, np.uint8).reshape(-1, 1, 1, 1)
  return pipeline.Split(images, np.asarray(labels, np.int32))


run = functools.partial(robustness.evaluate, names=['fgsm', 'pgd4', 'pgd4x2'], norm='linf',
                        epsilon=.1, step_size=.05, batch_size=4)


@pytest.mark.parametrize('name, expected', [
    ('fgsm', attack_names.Spec(1, 1, False)), ('pgd1', attack_names.Spec(1, 1, True)),
    ('pgd100x3', attack_names.Spec(100, 3, True)), ('pgd0', None), ('pgd', None), ('pgd5x0', None),
    ('PGD5', None), ('', None), (7, None)])
def test_names_of_attacks(name, expected):
  assert attack_names.parse(name) == expected


@pytest.mark.parametrize('name, expected', [
    ('margin100x5', attack_names.Spec(100, 5, True, 'margin')),
    ('scale0.5_pgd20', attack_names.Spec(20, 1, True, 'scale', .5)),
    ('masking10_pgd20x2', attack_names.Spec(20, 2, True, 'masking', 10.)),
    ('dummy0.25_pgd100', attack_names.Spec(100, 1, True, 'dummy', .25)),
    ('dummysoft_pgd100', attack_names.Spec(100, 1, True, 'dummysoft')),
    ('scale0_pgd20', None), ('dummy1.5_pgd20', None), ('scale_pgd20', None), ('scale5', None),
    ('margin_pgd20', None), ('dummysoft20', None)])
def test_names_of_attacks_that_know_the_method(name, expected):
  assert attack_names.parse(name) == expected


def test_sweeps_are_the_temperatures_and_weights_of_their_definitions():
  # 1/T and λ as the sweeps are defined in the literature's terms, written out again here.
  assert attack_names.expand('scales_pgd20') == tuple(
      f'scale{s}_pgd20' for s in ('0.2', '0.5', '1', '2', '5', '10', '20', '50'))
  assert attack_names.expand('dummies_pgd100') == tuple(
      f'dummy{w}_pgd100' for w in ('0', '0.25', '0.5', '0.75', '1')) + ('dummysoft_pgd100',)
  assert not attack_names.known('dummies_pgd') and not attack_names.known('scales_margin20')


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
  return deployed_lib.Network(None, logits, lambda v, x: ducat.fold(logits(v, x)), None, ducat.fold)


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


def test_a_sweep_is_reported_part_by_part_and_in_its_worst_case():
  digits = pipeline.load('digits').test
  split = pipeline.Split(digits.images[:40], digits.labels[:40])
  found = functools.partial(
      robustness.evaluate, split=split, key=jax.random.key(0), names=['pgd3', 'dummies_pgd3'],
      norm='linf', epsilon=.05, step_size=.02, batch_size=40)
  weights = jax.random.normal(jax.random.key(1), (64, 10))
  # On a head without dummies there is nothing for a dummy-aware attack to know.
  plain = found(linear_network(False), {'params': weights}, has_dummies=False)
  assert list(plain.robust) == ['pgd3']
  report = found(linear_network(True), {'params': weights}, has_dummies=True)
  assert set(report.robust) == {'pgd3', 'dummies_pgd3', *attack_names.expand('dummies_pgd3')}
  parts = [report.robust[name] for name in attack_names.expand('dummies_pgd3')]
  np.testing.assert_array_equal(report.robust['dummies_pgd3'], np.logical_and.reduce(parts))
  assert set(report.authors) == {'pgd3'}


def test_only_dummy_aware_attacks_find_the_way_past_a_class_to_its_dummy(monkeypatch):
  monkeypatch.setattr(_loops, 'writes_out', lambda: False)  # compiles sooner
  # On the mean m of 16 pixels, from 0 to 1; a random start leaves m about where it was. Class 0 is
  # on top, and flat, until .9; its dummy falls all the way; class 1 is above both from .925 on. So
  # the deployed logits have no gradient, and the raw cross-entropy of label 0 only the dummy's,
  # upwards, which is away from .925. Only to push the dummy down leads there.
  def logits(variables, x):
    m = x.reshape(len(x), -1).mean(axis=1)
    return jnp.stack([jnp.minimum(0., 40 * (.9 - m)), jnp.full_like(m, -1.), -4 * m,
                      jnp.full_like(m, -99.)], axis=-1)
  network = deployed_lib.Network(None, logits, lambda v, x: ducat.fold(logits(v, x)), None,
                                ducat.fold)
  split = pipeline.Split(np.full((3, 4, 4, 1), round(.45 * 255), np.uint8), np.zeros(3, np.int32))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True,
               names=['pgd20', 'margin20', 'dummies_pgd20'], epsilon=.5, step_size=.1)
  assert report.clean.all()
  stands = {name: bool(verdicts.all()) for name, verdicts in report.robust.items()}
  assert stands == {
      'pgd20': True, 'margin20': True, 'dummies_pgd20': False, 'dummysoft_pgd20': False,
      # 1 − λ of the push is against the dummy; at λ = 1 all of it is against the flat class 0.
      'dummy0_pgd20': False, 'dummy0.25_pgd20': False, 'dummy0.5_pgd20': False,
      'dummy0.75_pgd20': False, 'dummy1_pgd20': True}
  assert not any(verdicts.any() for name, verdicts in report.robust.items() if not stands[name])
  assert set(report.authors) == {'pgd20'}
  assert all(verdicts.all() for verdicts in report.authors.values())
  assert not report.worst_case.any()


def test_ours_looks_at_the_deployed_logits_and_the_authors_protocol_at_the_raw_ones():
  # Again on the mean of 16 pixels. Class 0 is flat at −2, its dummy above it falls along m to −1.2
  # at .95, class 1 is at −1. Down the deployed logit, which is the dummy's, is the way to class 1;
  # the raw cross-entropy of label 0 rises with the dummy, the other way, where 0 is recovered.
  def logits(variables, x):
    m = x.reshape(len(x), -1).mean(axis=1)
    return jnp.stack([jnp.full_like(m, -2.), jnp.full_like(m, -1.), 4 * (.65 - m),
                      jnp.full_like(m, -99.)], axis=-1)
  network = deployed_lib.Network(None, logits, lambda v, x: ducat.fold(logits(v, x)), None,
                                ducat.fold)
  split = pipeline.Split(np.full((3, 4, 4, 1), round(.45 * 255), np.uint8), np.zeros(3, np.int32))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True,
               names=['pgd4'], epsilon=.5, step_size=.2)
  assert report.clean.all()
  assert not report.robust['pgd4'].any() and report.authors['pgd4'].all()


def test_neither_batch_size_nor_order_changes_a_verdict():
  digits = pipeline.load('digits').test
  weights = jax.random.normal(jax.random.key(1), (64, 10))
  network = linear_network(False)
  verdicts = []
  for batch_size in (1, 7, 50):
    split = pipeline.Split(digits.images[:50], digits.labels[:50])
    report = robustness.evaluate(
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

"""Robustness reports: the deployed decision counts, and batches do not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.attacks import _loops
from at_jax.datasets import pipeline
from at_jax.evaluation import attack_names, autoattack_run, robustness
from at_jax.methods import ducat
from at_jax.models import deployed as deployed_lib


@pytest.fixture(autouse=True)
def loops(monkeypatch):
  """Steps are a loop, which compiles sooner."""
  monkeypatch.setattr(_loops, 'unrolls', lambda: False)


def linear_network(has_dummies):
  """A network with logits w·x, w = params."""
  fold = ducat.fold if has_dummies else lambda z: z
  logits = lambda variables, x: x.reshape(len(x), -1) @ variables['params']
  return deployed_lib.Network(None, logits, lambda v, x: fold(logits(v, x)), None, fold)


def one_pixel(values, labels):
  """Images of one pixel: values in 255ths."""
  images = np.asarray(values, np.uint8).reshape(-1, 1, 1, 1)
  return pipeline.Split(images, np.asarray(labels, np.int32))


run = functools.partial(robustness.evaluate, names=['fgsm', 'pgd4', 'pgd4x2'], norm='linf',
                        epsilon=.1, step_size=.05, batch_size=4)


def test_accuracies_equal_a_closed_form():
  # The logits .5·(1 − x) and .5·x predict 1 where the pixel is above .5. With ε = .1 a correct pixel is
  # robust if it is more than .1 away from .5.
  network = linear_network(False)
  network = network._replace(
      deployed=lambda v, x: .5 * jnp.concatenate([1 - x, x], axis=1).reshape(len(x), 2))
  network = network._replace(logits=network.deployed)
  values = [10, 90, 110, 120, 135, 150, 160, 250, 140]  # in 255ths; 127.5 ± 25.5 is within reach
  labels = [0, 0, 0, 0, 1, 1, 1, 1, 0]  # the last one is misclassified without an attack
  report = run(network, {'params': jnp.zeros(())}, one_pixel(values, labels), jax.random.key(0),
               has_dummies=False)
  np.testing.assert_array_equal(report.clean, [1, 1, 1, 1, 1, 1, 1, 1, 0])
  expected = [1, 1, 0, 0, 0, 0, 1, 1, 0]
  for verdicts in (*report.robust.values(), report.worst_case):
    np.testing.assert_array_equal(verdicts, expected)
  assert report.released == {}
  accuracies = report.accuracies()
  assert accuracies['n'] == 9 and accuracies['worst_case'] == pytest.approx(4 / 9)
  # Of class 0 four of five are correct and two are robust; of class 1 four and two of four.
  assert accuracies['by_class'] == {'clean': [.8, 1.], 'worst_case': [.4, .5], 'worst': 0}
  assert accuracies['worst_class'] == .4


def test_class_without_examples_is_null():
  network = linear_network(False)._replace(deployed=lambda v, x: jnp.eye(3)[jnp.full(len(x), 2)])
  report = run(network, {}, one_pixel([1, 2], [2, 0]), jax.random.key(0), names=[],
               has_dummies=False, batch_size=2)
  found = report.accuracies()
  assert found['by_class'] == {'clean': [0., None, 1.], 'worst_case': [0., None, 1.], 'worst': 0}
  assert found['worst_class'] == 0


def test_observed_points_are_those_that_were_judged():
  # 1 is predicted above .5, so a point's pixel alone says whether it is misclassified.
  deployed = lambda v, x: jnp.concatenate([.5 - x, x - .5], axis=1).reshape(len(x), 2)
  network = linear_network(False)._replace(deployed=deployed, logits=deployed)
  split, seen = one_pixel([10, 90, 110, 120, 135, 150, 250, 140], [0, 0, 0, 0, 1, 1, 1, 0]), {}

  def observe(index, x, logits):
    pixels = np.asarray(x)[:len(index)].ravel()
    np.testing.assert_array_equal(logits[:, 1] > logits[:, 0], pixels > .5)
    seen.update(zip(index.tolist(), pixels))

  report = run(network, {}, split, jax.random.key(0), has_dummies=False, names=['pgd4'], observe=observe)
  assert sorted(seen) == np.flatnonzero(report.clean).tolist() == list(range(7))  # two batches of 4
  for i, pixel in seen.items():
    assert report.robust['pgd4'][i] == ((pixel > .5) == split.labels[i])


def test_unknown_attacks_are_refused_before_the_model_runs():
  with pytest.raises(ValueError, match=r"names = \['pgd'\]: use attacks and sweeps"):
    run(None, {}, one_pixel([7], [0]), jax.random.key(0), has_dummies=False, names=['fgsm', 'pgd'])


def test_nan_logits_are_not_robust_whatever_the_class():
  # NaN on one input, and wherever a pixel is not a whole 255th; argmax of NaN would be class 0.
  def deployed(variables, x):
    pixel = x.reshape(len(x), 1)
    broken = (pixel * 255 == 7) | (jnp.abs(pixel * 255 - jnp.round(pixel * 255)) > .01)
    return jnp.where(broken, jnp.nan, jnp.concatenate([1 - pixel, pixel], axis=1))

  network = linear_network(False)._replace(deployed=deployed, logits=deployed)
  report = run(network, {}, one_pixel([7, 9, 20, 250], [0, 0, 0, 1]), jax.random.key(0), has_dummies=False,
               names=['pgd4'])
  np.testing.assert_array_equal(report.clean, [False, True, True, True])
  assert not report.robust['pgd4'].any() and report.accuracies()['worst_case'] == 0


def test_probabilities_are_warned_of_once_and_recorded():
  # RobustBench's diagnostic of outputs that are no logits, where no AutoAttack makes it.
  softmax = lambda v, x: jax.nn.softmax(3 * jnp.concatenate([.5 - x, x], axis=1).reshape(len(x), 2))
  logits = lambda v, x: 2 + jnp.log(softmax(v, x))
  seen, split = [], one_pixel([7, 20, 99, 140, 250], [0, 0, 0, 1, 1])
  of_softmax, of_logits = (
      run(linear_network(False)._replace(deployed=model, logits=model), {}, split, jax.random.key(0),
          has_dummies=False, names=['fgsm'], warn=lambda *found: seen.append(found))
      for model in (softmax, logits))
  line = 'the outputs are probabilities: attack the logits, before the softmax, or add square'
  assert seen == [('clean', line)] and of_softmax.accuracies()['warnings'] == {'clean': [line]}
  assert of_logits.warnings == {}


def test_float_images_are_evaluated_as_their_pixels_are(monkeypatch):
  pixels = one_pixel([7, 20, 99, 140, 250], [0, 0, 0, 1, 1])
  unit = pipeline.Split(np.asarray(pipeline.to_unit(pixels.images)), pixels.labels)
  deployed = lambda v, x: jnp.concatenate([.5 - x, x], axis=1).reshape(len(x), 2)
  network = linear_network(False)._replace(deployed=deployed, logits=deployed)
  found = [run(network, {}, split, jax.random.key(0), has_dummies=False, names=['fgsm']).accuracies()
           for split in (pixels, unit)]
  assert found[0] == found[1]
  monkeypatch.setattr(autoattack_run.attacks_lib, 'autoattack', lambda model, x, *args, **options: x)
  attacked = [autoattack_run.run(
      deployed, {}, split, jax.random.key(0), choice=autoattack_run.Choice('standard'), norm='linf',
      epsilon=.1, batch_size=5, title='autoattack')[0] for split in (pixels, unit)]
  np.testing.assert_array_equal(*attacked)


def test_labels_without_a_logit_are_refused():
  eye = lambda v, x: jnp.eye(3)[jnp.full(len(x), 2)]
  with pytest.raises(ValueError, match='split.labels'):
    run(linear_network(False)._replace(deployed=eye), {}, one_pixel([1], [3]), jax.random.key(0),
        has_dummies=False, names=[])


def dummy_network():
  """Two classes on one pixel x: class 0 up to .5, then its dummy up to .7, then class 1.

  With label 0, an attack on the raw logits has succeeded at x > .5, where the dummy is on top and is mapped
  to class 0. Only the folded logits lead on to .7.
  """
  def logits(variables, x):
    x = x.reshape(-1)
    hat = lambda low, high: 2. - jnp.maximum(jnp.maximum(low - x, x - high), 0) * 40
    nothing = jnp.full_like(x, -30.)
    return jnp.stack([hat(0., .5), hat(.7, 1.), hat(.5, .7), nothing], axis=-1)
  return with_dummies(logits)


def with_dummies(logits):
  return deployed_lib.Network(None, logits, lambda v, x: ducat.fold(logits(v, x)), None, ducat.fold)


def test_worst_case_includes_deployed_and_released_attacks():
  split = one_pixel([round(.65 * 255)] * 4, [0, 0, 0, 0])  # classified by the dummy
  report = run(dummy_network(), {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True)
  assert report.clean.all()
  assert not report.robust['pgd4'].any()  # .7 is within ε = .1
  # The raw loss of label 0 increases away from class 0 or is flat. The deployed decision judges what the
  # attack finds, and the worst case is over all attacks.
  assert set(report.released) == set(report.robust)
  np.testing.assert_array_equal(
      report.worst_case, np.logical_and.reduce([report.clean, *report.robust.values(),
                                                *report.released.values()]))


def test_misclassified_clean_examples_are_not_robust():
  # Label 1, classified as 0. The released protocol attacks this example too, in any direction.
  report = run(dummy_network(), {'params': jnp.zeros(())}, one_pixel([60], [1]), jax.random.key(0),
               has_dummies=True)
  assert not report.clean.any() and not report.worst_case.any()
  assert not any(v.any() for v in report.robust.values())


def test_sweep_has_its_parts_and_their_worst_case():
  digits = pipeline.load('digits').test
  split = pipeline.Split(digits.images[:40], digits.labels[:40] % 5)
  found = functools.partial(
      robustness.evaluate, split=split, key=jax.random.key(0), names=['pgd3', 'dummies_pgd3'],
      norm='linf', epsilon=.05, step_size=.02, batch_size=40)
  weights = jax.random.normal(jax.random.key(1), (64, 10))
  # Dummy-aware attacks are skipped on a head without dummy classes.
  plain = found(linear_network(False), {'params': weights}, has_dummies=False)
  assert list(plain.robust) == ['pgd3']
  report = found(linear_network(True), {'params': weights}, has_dummies=True)
  assert set(report.robust) == {'pgd3', 'dummies_pgd3', *attack_names.expand('dummies_pgd3')}
  parts = [report.robust[name] for name in attack_names.expand('dummies_pgd3')]
  np.testing.assert_array_equal(report.robust['dummies_pgd3'], np.logical_and.reduce(parts))
  assert set(report.released) == {'pgd3'}


def test_only_dummy_aware_attacks_lower_the_dummy():
  # Logits of the mean m of 16 pixels, in [0, 1]; a random start changes m little. Class 0 is on top, and
  # flat, up to .9; its dummy decreases everywhere; class 1 is above both from .925 on. So the deployed logits
  # have no gradient, and the raw cross-entropy of label 0 has only the dummy's, which leads away from .925.
  # Only an attack that lowers the dummy gets there.
  def logits(variables, x):
    m = x.reshape(len(x), -1).mean(axis=1)
    return jnp.stack([jnp.minimum(0., 40 * (.9 - m)), jnp.full_like(m, -1.), -4 * m,
                      jnp.full_like(m, -99.)], axis=-1)
  network = with_dummies(logits)
  split = pipeline.Split(np.full((3, 4, 4, 1), round(.45 * 255), np.uint8), np.zeros(3, np.int32))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True,
               names=['pgd20', 'margin20', 'dummies_pgd20'], epsilon=.5, step_size=.1)
  assert report.clean.all()
  robust = {name: bool(verdicts.all()) for name, verdicts in report.robust.items()}
  assert robust == {
      'pgd20': True, 'margin20': True, 'dummies_pgd20': False, 'dummysoft_pgd20': False,
      # The dummy has weight 1 − λ; at λ = 1 only the flat class 0 is left.
      'dummy0_pgd20': False, 'dummy0.25_pgd20': False, 'dummy0.5_pgd20': False,
      'dummy0.75_pgd20': False, 'dummy1_pgd20': True}
  assert not any(verdicts.any() for name, verdicts in report.robust.items() if not robust[name])
  assert set(report.released) == {'pgd20'}
  assert all(verdicts.all() for verdicts in report.released.values())
  assert not report.worst_case.any()


def test_deployed_and_raw_logits_lead_different_ways():
  # Logits of the mean m of 16 pixels. Class 0 is flat at −2, its dummy decreases along m to −1.2 at .95,
  # class 1 is at −1. Lowering the deployed logit, which is the dummy's, leads to class 1. The raw
  # cross-entropy of label 0 increases with the dummy, the other way, where the prediction is mapped to 0.
  def logits(variables, x):
    m = x.reshape(len(x), -1).mean(axis=1)
    return jnp.stack([jnp.full_like(m, -2.), jnp.full_like(m, -1.), 4 * (.65 - m),
                      jnp.full_like(m, -99.)], axis=-1)
  network = with_dummies(logits)
  split = pipeline.Split(np.full((3, 4, 4, 1), round(.45 * 255), np.uint8), np.zeros(3, np.int32))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=True,
               names=['pgd4'], epsilon=.5, step_size=.2)
  assert report.clean.all()
  assert not report.robust['pgd4'].any() and report.released['pgd4'].all()


def test_batch_size_changes_no_verdict():
  digits = pipeline.load('digits').test
  weights = jax.random.normal(jax.random.key(1), (64, 10))
  network = linear_network(False)
  verdicts = []
  for batch_size in (1, 7, 50):
    split = pipeline.Split(digits.images[:50], digits.labels[:50])
    report = robustness.evaluate(
        network, {'params': weights}, split, jax.random.key(0), names=['pgd3x2'],
        norm='l2', epsilon=.5, step_size=.2, batch_size=batch_size, has_dummies=False)
    verdicts.append(np.stack([report.clean, *report.robust.values()]))
  np.testing.assert_array_equal(verdicts[0], verdicts[1])
  np.testing.assert_array_equal(verdicts[0], verdicts[2])


def test_progress_ends_at_the_accuracy():
  last = {}
  split = one_pixel([10, 90, 110, 120, 135], [0, 0, 0, 0, 1])
  network = linear_network(False)._replace(
      deployed=lambda v, x: jnp.concatenate([1 - x, x], axis=1).reshape(len(x), 2))
  report = run(network, {'params': jnp.zeros(())}, split, jax.random.key(0), has_dummies=False,
               progress=lambda name, *numbers: last.update({name: numbers}))
  assert last['clean'] == (5, 5, 1.)
  assert last['pgd4'][0] == last['pgd4'][1]
  assert last['pgd4'][2] == pytest.approx(report.robust['pgd4'].mean())

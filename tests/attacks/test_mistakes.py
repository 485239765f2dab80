"""What users of the attacks get wrong: one line that names the argument and the remedy, before any attack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from at_jax import attacks
from at_jax.attacks import losses

KEY = jax.random.key(0)
W = np.random.RandomState(0).normal(size=(4, 5)).astype(np.float32)
X, Y = np.full((5, 4), .5, np.float32), np.arange(5)  # as many examples as classes
IMAGES = np.full((5, 2, 3, 4), .5, np.float32)
model = lambda x: x @ W
by_class = lambda logits, y: optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(y, 5))
averaged = lambda logits, y: losses.cross_entropy(logits, y).mean()
from_numpy = lambda x: np.asarray(x) @ W
weighted = lambda logits, y, weights: (weights * jax.nn.log_softmax(logits)).sum(-1)


def pgd(logits_fn=model, x=X, y=Y, key=KEY, **options):
  options = dict(epsilon=.1, step_size=.05, num_steps=2) | options
  return attacks.pgd(logits_fn, x, y, key, **options)


def autoattack(logits_fn=model, x=X, y=Y, **options):
  return attacks.autoattack(logits_fn, x, y, KEY, epsilon=.1, **options)


# The argument that the line begins with, the call, and a part of the remedy.
MISTAKES = [
    ('epsilon', lambda: pgd(epsilon='8/255'), 'without quotes'),
    ('epsilon', lambda: pgd(epsilon=-.1), 'at least 0'),
    ('epsilon', lambda: pgd(epsilon=float('inf')), 'finite, 8/255'),
    ('epsilon', lambda: pgd(epsilon=None), 'use a number'),
    ('epsilon', lambda: pgd(epsilon=[.1, [.2]]), 'use a number'),
    ('epsilon', lambda: pgd(epsilon=[.1, .1, .1, .1, -1.]), 'at least 0'),
    ('epsilon', lambda: pgd(epsilon=1e300), 'finite'),  # infinite in float32
    ('epsilon', lambda: pgd(epsilon=1j), 'use a number'),
    ('epsilon', lambda: pgd(x=IMAGES, epsilon=np.full(3, .1)), '(5,), one row per example'),
    ('step_size', lambda: pgd(step_size=np.nan), 'use a number of at least 0'),
    ('step_size', lambda: pgd(step_size=np.full((5, 1), .1)), '(5,), one row per example'),
    ('num_steps', lambda: pgd(num_steps=2.5), 'whole number'),
    ('norm', lambda: pgd(norm='inf'), 'linf, l2, l1'),
    ('norm', lambda: pgd(norm=np.ones(2)), 'linf, l2, l1'),
    ('norm', lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, norm=['l2']), 'can be hashed'),
    ('x', lambda: pgd(x=np.zeros((5, 4), np.uint8)), '.astype(float32) / 255'),
    ('x', lambda: pgd(x=X.astype(np.float16)), 'use float32'),
    ('x', lambda: pgd(x=255 * X), 'give bounds='),
    ('x', lambda: pgd(x={'image': X}), 'use an array'),
    ('x', lambda: pgd(x=X[:0], y=Y[:0]), 'give at least one'),
    ('x', lambda: pgd(x=X * np.nan), 'leave these out'),
    ('y', lambda: pgd(x=X[0], y=Y[0]), 'x[None], y[None]'),
    ('y', lambda: pgd(x=X[0], y=Y[:1]), 'x[None] of one example'),
    ('y', lambda: pgd(y=Y[:4]), 'the same examples'),
    ('y', lambda: pgd(y=Y[:, None]), 'y[:, 0]'),
    ('y', lambda: pgd(y=np.eye(5)), 'argmax(y, axis=-1)'),
    ('y', lambda: pgd(y=Y + 1), 'are 0..4'),
    ('y', lambda: pgd(y=Y - 1), 'leave out'),
    ('y', lambda: pgd(y=Y + 2**32), 'int32 cannot hold'),  # which would be the classes 0..4
    ('y', lambda: pgd(y=Y.astype(float)), 'use integers'),
    ('y', lambda: pgd(y=['cat'] * 5), 'array of numbers'),
    ('y', lambda: pgd(decide=lambda z: z[:, :3]), 'are 0..2'),
    ('key', lambda: pgd(key=0), 'jax.random.key(0)'),
    ('key', lambda: pgd(key=jax.random.split(KEY)), 'jax.random.key(0)'),
    ('logits_fn', lambda: pgd(3), 'use a function'),
    ('logits_fn', lambda: pgd(lambda x, train: x @ W), 'model(x, train=False)'),
    ('logits_fn', lambda: pgd(lambda x: (x @ W, 0)), 'model(x)[0]'),
    ('logits_fn', lambda: pgd(lambda x: {'logits': x @ W}), "model(x)['logits']"),
    ('logits_fn', lambda: pgd(lambda x: x @ W[:, 0]), 'stack([0 * z, z]'),
    ('logits_fn', lambda: pgd(lambda x: (x @ W).argmax(-1)), 'before any argmax'),
    ('logits_fn', lambda: pgd(lambda x: x[:, :, None] * W), 'pixel or token is not supported'),
    ('logits_fn', lambda: pgd(lambda x: W.T @ x.T), 'one row per example'),  # [C, B], and B = C
    ('logits_fn', lambda: pgd(lambda x: x.reshape(-1, 7) @ W), 'fails on float32[5, 4]'),
    ('logits_fn', lambda: pgd(from_numpy), 'write it in jax.numpy'),
    ('logits_fn', lambda: autoattack(from_numpy, attacks=('square',)), 'for square alone'),
    ('loss', lambda: pgd(loss='dlr'), 'losses.dlr'),
    ('loss', lambda: pgd(loss=averaged), 'without the mean'),
    ('loss', lambda: attacks.apgd(model, X, Y, KEY, epsilon=.1, loss=averaged), 'without the mean'),
    ('loss', lambda: pgd(loss=by_class), 'one number per example'),
    ('loss', lambda: pgd(loss=optax.softmax_cross_entropy), 'not one-hot'),
    ('loss', lambda: pgd(loss=weighted, loss_args=(np.ones(5),)), 'row per example'),
    ('loss', lambda: pgd(loss=lambda z, y: np.log(np.asarray(z))[:, 0]), 'write it in jax.numpy'),
    ('loss_args', lambda: pgd(loss=weighted, loss_args=X), 'use a tuple'),
    ('loss_args', lambda: pgd(loss=weighted, loss_args=(X[:2],)), 'one row per example'),
    ('decide', lambda: pgd(decide=lambda z: z.argmax(-1)), 'before any argmax'),
    ('tau', lambda: pgd(tau=1.5), 'use integers'),
    ('tau', lambda: pgd(tau=-1), 'at least 0'),
    ('tau', lambda: pgd(tau='1'), 'array of numbers'),
    ('tau', lambda: pgd(tau=2**40), 'array of numbers'),
    ('momentum', lambda: pgd(momentum=np.ones(4)), 'use a number'),  # would decay each column on its own
    ('restarts', lambda: pgd(restarts=3, random_start=False), 'use 1'),
    ('restarts', lambda: pgd(restarts='3'), 'whole number'),
    ('random_start', lambda: pgd(random_start='no'), 'True or False'),
    ('targeted', lambda: pgd(targeted='no'), 'True or False'),
    ('bounds', lambda: pgd(bounds=(None, 1.)), 'use a number'),
    ('bounds', lambda: pgd(bounds=('0', '1')), 'without quotes'),
    ('mask', lambda: pgd(mask={'patch': X}), 'array of numbers'),
    ('index', lambda: pgd(index=['a'] * 5), 'array of numbers'),
    ('index', lambda: pgd(index=Y + 2**32), 'int32 cannot hold'),
    ('start', lambda: pgd(start='x'), 'use a number'),
    ('start', lambda: pgd(start=X[0]), '(5, 4), one row per example'),
    ('scale', lambda: attacks.gaussian_start(X, KEY, scale=np.ones(4)), 'use a number'),
    ('target', lambda: attacks.fab(model, X, Y, epsilon=.1, target=1), '(5,), one row per example'),
    ('random_start', lambda: attacks.fab(model, X, Y, epsilon=.1, random_start=True), 'key'),
    ('channel_axis', lambda: attacks.square(model, X, Y, KEY, epsilon=.1, channel_axis=3), 'use -1'),
    ('p_init', lambda: attacks.square(model, X, Y, KEY, epsilon=.1, p_init=None), 'use a number'),
    ('x', lambda: autoattack(lambda x: x[:, 0, 0, 0] @ W, np.full((5, 2, 3, 1, 4), .5, np.float32)),
     'leave it out'),
    ('version', lambda: autoattack(version='full'), 'standard, plus, rand'),
    ('attacks', lambda: autoattack(attacks=('pgd',)), 'use some of apgd-ce'),
    ('attacks', lambda: autoattack(attacks=3), 'use some of apgd-ce'),
    ('cascade', lambda: autoattack(cascade='no'), 'True or False'),
    ('search_fn', lambda: autoattack(search_fn=lambda x: x[:, :, None]), 'one row per example'),
    ('state_path', lambda: autoattack(state_path=3), 'path of a file'),
    ('save_every', lambda: autoattack(save_every=None), 'use a number'),
    ('progress', lambda: autoattack(progress=True), 'use a function'),
    ('index', lambda: autoattack(index=np.zeros(5, int)), 'arange(len(x))'),
]


@pytest.mark.parametrize('argument, call, remedy', MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_mistakes_are_named_in_one_line(argument, call, remedy):
  with pytest.raises(ValueError) as caught:
    call()
  line = str(caught.value)
  assert line.startswith(f'{argument} ') or line.startswith(f'{argument}['), line
  assert remedy in line and '\n' not in line, line


MULTI_HOT = np.array([[1, 0, 1, 0, 0]] * 5)


@pytest.mark.parametrize('y, remedy', [
    (MULTI_HOT, 'attack one at a time, y[:, j] with the logits stack([0 * z[:, j], z[:, j]]'),
    (0 * MULTI_HOT, 'attack one at a time'),
    (MULTI_HOT / 2, 'soft labels go into loss_args'),
    (np.zeros((5, 2, 3), int), 'pixel or token is not supported'),
    (np.full((5, 6), 7), 'pixel or token is not supported')])
def test_labels_that_argmax_would_lose_get_other_advice(y, remedy):
  with pytest.raises(ValueError) as caught:
    pgd(y=y)
  assert remedy in str(caught.value) and 'argmax' not in str(caught.value)
  with pytest.raises(ValueError, match='if each row is one-hot|not supported'):  # values are not known
    jax.eval_shape(lambda y: pgd(y=y).x, y)


def test_one_label_of_several_is_attacked_as_the_advice_says():
  # Label j of a linear multi-label model is lost within ε in L∞ where |z_j| ≤ ε · ‖w_j‖₁: closed form.
  x = np.random.RandomState(1).uniform(.3, .7, (40, 4)).astype(np.float32)
  scores = (x - .5) @ W
  for j in range(2):
    logits_fn = lambda x, j=j: jnp.stack([0 * x[:, 0], (x - .5) @ W[:, j]], axis=-1)
    found = attacks.fgsm(logits_fn, x, (scores[:, j] > 0).astype(int), epsilon=.05)
    reach = np.abs(scores[:, j]) < .05 * np.abs(W[:, j]).sum()
    assert 0 < reach.sum() < 40
    np.testing.assert_array_equal(found.success, reach)

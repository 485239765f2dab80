"""The problem on which at_jax and the released code are compared: a small network, images and labels.

Everything is drawn from seeds by numpy's RandomState, whose streams are the same in every version. So
reference.json holds only results, and projections of results that are as large as an image.
"""

import jax.numpy as jnp
import numpy as np

BATCH, HIDDEN = 16, 12
# A third of GAIRAT's, so that κ takes many values. At CFA's smallest radius the starts are still within
# the ball: at_jax projects the start into the ball, the released code only the iterates.
EPSILON, STEP_SIZE = .012, .0023
STEPS = 6  # even, because GAIRAT's code has K//2 for K/2
GAIR_RST_STEPS = 10  # for which K/2 − κ in its code equals the paper's 5(1 − 2κ/K)
LAMBDAS = (-1., 0., 3.)  # GAIRAT's, GAIR-FAT's, GAIR-RST's
FORMS = ('tanh', 'sigmoid', 'discrete')
TAUS = (0, 1, 3)  # 0 and 3 are GAIR-FAT's
BETA, MART_BETA = 6., 5.  # TRADES' and DUCAT's; MART's and MAIL's
TEMPERATURE = .5  # Consistency's, whose β is 1
# Bias and slope of MAIL's README for AT and TRADES; its MART is given those of AT.
MAIL = {'at': (-.5, 10.), 'trades': (0., 2.), 'mart': (-.5, 10.)}
# Dummy weights for x and for x', and α: DUCAT's defaults, and values that all have an effect.
DUCAT = {'': (.25, 1., 1.), ' otherwise': (.3, .8, .7)}
# CFA's λ for TRADES' radius and for β, and class accuracies.
RADIUS_BASE, BETA_BASE, ACCURACY = .3, .5, np.linspace(.1, .8, 10)
DECAY, THRESHOLD = .85, .2  # of CFA's average of epochs
WORST_CLASS = (.1, .3, .19, .2, .5)  # in those epochs
AWP_GAMMA = .01  # of AT-AWP
INNER, CYCLES, DECAYS = 5, 2, (0., 5e-4)  # of Entropy-SGD; its L is 20, which only takes longer
GAMMA = .03  # Entropy-SGD's for CIFAR
_random = np.random.RandomState(0)
_images = lambda: _random.uniform(.1, .9, (BATCH, 3, 32, 32))  # so that no start is clipped
X, X2 = _images(), _images()
NOISE = _random.normal(size=X.shape)
Y = _random.randint(0, 10, BATCH)
MEAN, VARIANCE = _random.normal(size=HIDDEN) / 10, _random.uniform(.1, .4, HIDDEN)
DIRECTIONS = _random.normal(size=(4, X[0].size))
UNIFORM = np.random.RandomState(4).uniform(-1, 1, X.shape)  # starts of single-step attacks, in units of ε
NUAT_BETA = 4.5  # NuAT's largest
# Adversarial examples for comparisons without an attack.
MOVED, MOVED2 = X + .02 * np.sign(NOISE), X2 - .02 * np.sign(NOISE)


def weights_of(outputs):
  random = np.random.RandomState(1)
  return {'w1': random.normal(size=(X[0].size, HIDDEN)) / 150,
          'b1': random.normal(size=HIDDEN) / 10,
          'scale': random.uniform(.5, 1.5, HIDDEN), 'shift': random.normal(size=HIDDEN) / 10,
          'w2': random.normal(size=(HIDDEN, outputs)) / 3, 'b2': random.normal(size=outputs) / 10}


def network(params, x, train=False):
  """Logits; in train mode BatchNorm depends on which examples share a pass."""
  hidden = jnp.tanh(x.reshape(len(x), -1) @ params['w1'] + params['b1'])
  mean, variance = (hidden.mean(0), hidden.var(0)) if train else (MEAN, VARIANCE)
  hidden = (hidden - mean) / jnp.sqrt(variance + 1e-5)  # PyTorch's
  return (params['scale'] * hidden + params['shift']) @ params['w2'] + params['b2']


def labels_with_some_wrong(params):
  """Labels, about half of them predicted correctly, so that κ and the weights take many values."""
  return np.where(np.arange(BATCH) % 2, Y, np.argmax(network(params, X), -1))


def epochs():
  """Parameters at the end of five epochs, for CFA's average."""
  random = np.random.RandomState(2)
  return [{name: w + random.normal(size=w.shape) for name, w in weights_of(10).items()}
          for _ in WORST_CLASS]


def batches():
  """Minibatches for Entropy-SGD. Its port draws one more in each cycle than it learns from."""
  random = np.random.RandomState(3)
  return [(random.uniform(size=X.shape), random.randint(0, 10, BATCH))
          for _ in range(CYCLES * (INNER + 1))]


def digest(params):
  """Parameters or gradients, those of the first layer projected on four directions."""
  return {name: DIRECTIONS @ w if name == 'w1' else w for name, w in params.items()}


def perturbation(x_adv):
  """f64[B, 4], the perturbation of an attack projected on four directions."""
  return (np.asarray(x_adv) - X).reshape(BATCH, -1) @ DIRECTIONS.T

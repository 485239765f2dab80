"""Gallery of examples that several models always misclassify: images, perturbations and predictions."""

from typing import Any

import numpy as np

from at_jax import errors
from at_jax.analysis import figures, runs
from at_jax.datasets import pipeline

_ROWS = 6


def gallery(model: runs.Model, attack: str, always: np.ndarray, *, name: str, run: str, models: int
            ) -> figures.Captioned:
  """Draws examples that always fail: image, magnified perturbation, attacked image, and predictions.

  Only examples that the model classifies correctly clean are drawn, because others are not attacked: at most
  six, the first of each class before the second. The points are those of the attack with the keys of the
  evaluation.

  Args:
    model: the model that is attacked.
    attack: name of the attack.
    always: bool[N], the examples that always fail, so that this attack fools the model on each.
    name: name of the figure's file, without a suffix.
    run: name of the model's run.
    models: number of models that fail on the examples.

  Returns:
    The figure. Beside each example are its class, which is the clean prediction, the prediction under attack,
    and the nearest class: the second largest logit of the clean image.

  Raises:
    errors.UserError: if the model classifies none of the examples correctly clean.
  """
  labels = model.split.labels
  correct = always & (runs.clean(model) == labels)
  if not correct.any():
    raise errors.UserError('--gallery', f'{name}.png', f'without an attack {run} misclassifies all of the '
                           f'{always.sum()} examples that always fail: name another run first')
  drawn = first_of_each_class(correct, labels, _ROWS)
  clean = np.asarray(pipeline.in_unit(model.split.images[drawn]))
  attacked = runs.attack(model, runs.pgd(attack), drawn, points=True)
  logits = runs.clean_logits(model, drawn)
  logits[np.arange(len(logits)), labels[drawn]] = -np.inf
  class_names = (*model.class_names, 'none')  # −1 for logits that decide nothing
  label, predicted, nearest = ([class_names[c] for c in classes] for classes in (
      labels[drawn], attacked.predictions[drawn], logits.argmax(axis=1)))
  factor = magnification(attacked.x - clean)
  rows = list(zip(np.flatnonzero(drawn), clean, attacked.x, label, predicted, nearest, strict=True))
  caption = (
      f'Images that all of {models} models misclassify under {attack}, and that {run} classifies correctly '
      f'without it ({correct.sum()} of {always.sum()} such images), with the perturbation times {factor} on '
      'grey. Nearest is the class of the second largest logit of the clean image.')
  alt = '; '.join(f'example {i}: {label}, under attack {predicted}, nearest class {nearest}'
                  for i, _, _, label, predicted, nearest in rows)
  return figures.Captioned(name, 'Examples that always fail', _figure(rows, factor), caption, alt)


def first_of_each_class(chosen: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
  """Takes the first chosen example of each class, then the second of each, until there are enough.

  Args:
    chosen: bool[N].
    labels: i32[N].
    number: how many to take, at most.

  Returns:
    bool[N].

  Example:
    >>> first_of_each_class(np.array([1, 1, 0, 1, 1], bool), np.array([2, 2, 2, 0, 2]), 3).astype(int)
    array([1, 1, 0, 1, 0])
  """
  places = np.flatnonzero(chosen)
  rank = [np.sum(labels[places[:i]] == labels[place]) for i, place in enumerate(places)]
  taken = np.zeros(len(chosen), bool)
  taken[places[np.lexsort((places, rank))][:number]] = True
  return taken


def magnification(delta: np.ndarray) -> int:
  """Finds the largest whole factor by which perturbations fit into a grey image of 0.5.

  Args:
    delta: f32[...], perturbations.

  Returns:
    ⌊.5 / max|δ|⌋, at least 1 and at most 500.

  Example:
    >>> magnification(np.array([8 / 255, -.01]))  # .5 / (8/255) = 15.9
    15
  """
  return max(1, int(.5 / max(np.abs(delta).max(), 1e-3)))


def _figure(rows: list[tuple], factor: int) -> Any:
  """One row an example: three images, and what is predicted."""
  figure = figures.new(4.6, .95 * len(rows) + .3)
  axes = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.9))
  for (_, clean, attacked, label, predicted, nearest), line in zip(rows, axes, strict=True):
    for image, place in zip((clean, .5 + factor * (attacked - clean), attacked), line, strict=False):
      colour = image if image.shape[-1] == 3 else image.mean(axis=-1)
      place.imshow(np.clip(colour, 0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    text = figures.label(f'{label} → {predicted}\nnearest: {nearest}')
    line[3].text(0, .5, text, va='center', fontsize=9, transform=line[3].transAxes)
    for place in line:
      place.set_axis_off()
  titles = 'image', f'change × {factor}', 'attacked', 'clean → attacked'
  for place, title in zip(axes[0], titles, strict=True):
    place.set_title(title, fontsize=9, loc='left' if place is axes[0, 3] else 'center')
  return figure

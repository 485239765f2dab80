"""Streams of TFDS's files: resized crops, splits, batches that depend on the key, the step and the order."""

import io
import sys

import numpy as np
from PIL import Image
import pytest

from at_jax import datasets, errors
from at_jax.config import default as default_config
from at_jax.datasets import resized_crop, streaming
from at_jax.training import run_data
from tests.fixtures import imagenet


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return imagenet.prepare(tmp_path_factory.mktemp('sets'))


@pytest.fixture(scope='module')
def stream(folder):
  return streaming.load('imagenet2012', data_dir=folder, validation_size=8, image_size=16)


def test_box_is_in_the_image_with_area_and_ratio_in_range():
  random = np.random.RandomState(0)
  for _ in range(500):
    height, width = random.randint(2, 500, 2).tolist()
    left, top, right, bottom = resized_crop.box(height, width, random.uniform(size=40))
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    # Szegedy et al., 2015: 8 to 100 % of the area, ratio 3/4 to 4/3; sides are rounded to whole pixels, and a
    # centred box of an image that is longer than 4/3 may be smaller.
    assert 3 / 4 * (h - 1) <= w + 1 and 3 / 4 * (w - 1) <= h + 1
    assert (w + 1) * (h + 1) >= .08 * height * width or max(height, width) > 4 / 3 * min(height, width)


def test_box_of_an_image_too_long_for_ten_attempts_is_central():
  # Whole area and ratio 1 do not fit into 30×120; the largest ratio is 4/3, so the box is 30×40.
  whole = np.tile([1., .5, 0, 0], 10)
  assert resized_crop.box(30, 120, whole) == (40, 0, 80, 30)
  assert resized_crop.box(120, 30, whole) == (0, 40, 30, 80)


def test_crop_of_the_size_of_the_result_keeps_its_pixels():
  pixels = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
  # 30² of 40² pixels, ratio 1, and the last of the 11 places in each direction.
  uniforms = np.tile([(900 / 1600 - .08) / .92, .5, .99, .99], 10)
  found = resized_crop.train_image(Image.fromarray(pixels), 30, uniforms)
  np.testing.assert_array_equal(found, pixels[10:, 10:])


def test_evaluation_takes_the_central_224_of_256():
  pixels = np.random.RandomState(0).randint(0, 256, (256, 300, 3)).astype(np.uint8)
  found = resized_crop.test_image(Image.fromarray(pixels), 224)
  np.testing.assert_array_equal(found, pixels[16:240, 38:262])
  # Half the size: the shorter side becomes 128, the longer one int(128 · 301 / 256) = 150.
  assert resized_crop.test_image(Image.new('L', (301, 256)), 112).shape == (112, 112, 3)


def test_draws_are_uniform_and_of_one_example_and_step():
  found = np.stack([resized_crop.draws(3, step, index) for step in range(30) for index in range(30)])
  assert len(np.unique(found)) == found.size and 0 <= found.min() and found.max() < 1
  # The mean of 36,000 uniform numbers has a standard deviation of 1/√(12 · 36,000) = .0015.
  assert abs(found.mean() - .5) < .008 and abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < .03
  assert not np.array_equal(resized_crop.draws(4, 0, 0), found[0])


def as_evaluated(split, i):
  encoded = io.BytesIO()
  imagenet.picture(split, i).save(encoded, format='jpeg')
  return resized_crop.test_image(Image.open(encoded), 16).tobytes()


def test_splits_of_imagenet_are_disjoint_and_decoded(stream):
  assert (stream.train_size, stream.image_shape, stream.num_classes) == (32, (16, 16, 3), 1000)
  # ImageNet's test split has no labels: its validation split is the test set.
  whole = {split: {as_evaluated(split, i): i % 3 for i in range(n)} for split, n in imagenet.SPLITS.items()}
  parts = {name: {x.tobytes(): int(y) for x, y in zip(split.images[:], split.labels, strict=True)}
           for name in ('train', 'validation', 'test') for split in [getattr(stream, name)]}
  assert parts['test'] == whole['validation']
  assert parts['train'] | parts['validation'] == whole['train']
  assert len(parts['train']) == 32 and len(parts['validation']) == 8


def read(stream, order, first=0, key=5):
  batches = streaming.batches(stream.train, order, first, key)
  images, labels = zip(*batches, strict=True)
  batches.close()
  return np.stack(images), np.stack(labels)


def test_batches_depend_on_key_step_and_example_alone(stream):
  order = np.random.RandomState(0).permutation(32).reshape(8, 4)
  images, labels = read(stream, order)
  np.testing.assert_array_equal(labels, stream.train.labels[order])
  again, _ = read(stream, order)
  np.testing.assert_array_equal(images, again)
  rest, _ = read(stream, order[5:], first=5)  # a resumed run
  np.testing.assert_array_equal(images[5:], rest)
  halves = [read(stream, half)[0] for half in (order[:, :2], order[:, 2:])]  # of two processes
  np.testing.assert_array_equal(images, np.concatenate(halves, axis=1))
  other, _ = read(stream, order, key=6)
  later, _ = read(stream, order, first=8)  # the next epoch
  for each in (other, later):
    assert all((a != b).any() for a, b in zip(images.reshape(32, -1), each.reshape(32, -1), strict=True))


def test_damaged_files_are_one_line_also_in_training(tmp_path):
  folder = imagenet.prepare(tmp_path)
  stream = streaming.load('imagenet2012', data_dir=folder, image_size=16)
  for shard in tmp_path.rglob('*train*array_record*'):
    shard.write_bytes(b'')
  with pytest.raises(errors.UserError, match='cannot be read.*move that folder away') as caught:
    read(stream, np.arange(8).reshape(2, 4))
  assert '\n' not in str(caught.value)


def config(folder, **options):
  c = default_config()
  c.dataset.update(name='imagenet2012', data_dir=folder, num_classes=1000, source='stream',
                   augment='resized_crop', image_size=16, validation_size=8, **options)
  return c


@pytest.mark.parametrize('options, expected', [
    (dict(validation_size=40), 'config.dataset.validation_size = 40: use a whole number from 0 to 39'),
    (dict(name='nowhere'), "config.dataset.name = 'nowhere': a stream needs a data set of TFDS"),
    (dict(augment='crop'), "images of shape .None, None, 3.*dataset.augment = 'resized_crop'"),
])
def test_wrong_stream_is_one_line(folder, options, expected):
  c = config(folder)
  c.dataset.update(options)
  with pytest.raises(errors.UserError, match=expected) as caught:
    run_data.read(c)
  assert '\n' not in str(caught.value)


def test_missing_grain_is_one_line(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'grain', None)
  monkeypatch.delitem(sys.modules, 'at_jax.datasets.streaming')
  monkeypatch.delattr(datasets, 'streaming')
  with pytest.raises(errors.UserError, match=r"dataset.source = 'stream'.*pip install 'at_jax\[stream\]'"):
    run_data.read(config(folder))

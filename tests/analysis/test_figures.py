"""Files and data URIs of figures, and what loads matplotlib."""

import base64
import importlib.util
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest

from at_jax import errors
from at_jax.analysis import figures

RESULTS = pathlib.Path(__file__).parents[2] / 'results' / 'small_cifar10'


def drawn(image=None):
  figure = figures.new(2, 1.5)
  axes = figure.subplots()
  axes.plot([0, 8], [.5, .2], color=figures.COLORS[0])
  if image is not None:
    axes.imshow(image, cmap=figures.SEQUENTIAL)
  return figures.Captioned('a-figure', 'A figure', figure, 'The line falls.', 'A line from .5 to .2.')


def test_png_is_written_into_a_new_folder(tmp_path):
  path = figures.write(drawn(), tmp_path / 'new')
  assert path == tmp_path / 'new' / 'a-figure.png'
  assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')  # the signature of PNG, RFC 2083


def test_png_keeps_its_texts(tmp_path):
  written = drawn()._replace(name='b c', title='ε = 8', caption='“a” ‖ b', alt='<alt>')
  figures.write(written, tmp_path)
  figures.write(drawn(), tmp_path)
  (tmp_path / 'c.png').write_text('no image')
  Image.new('RGB', (2, 2)).save(tmp_path / 'd.png', 'JPEG')
  first, second = figures.read('--pictures', tmp_path)
  assert first[0] == 'a-figure' and second[0] == 'b-c'
  assert (second.title, second.caption, second.alt) == written[1:2] + written[3:]
  content = base64.b64decode(figures.data_uri(second).removeprefix('data:image/png;base64,'))
  assert content == (tmp_path / 'b c.png').read_bytes() == figures.write(
      second._replace(name='d'), tmp_path).read_bytes()
  with pytest.raises(errors.UserError, match="^--pictures = '.*none': it has no figure of an analysis"):
    figures.read('--pictures', tmp_path / 'none')


def test_failed_write_is_one_line(tmp_path):
  (tmp_path / 'taken').write_text('')
  with pytest.raises(errors.UserError, match=r'^folder = .*taken.*name another folder$'):
    figures.write(drawn(), tmp_path / 'taken')


def test_data_uri_is_the_shorter_of_svg_and_png():
  # A line has a short description; noise of 300 × 300 pixels has not, as SVG repeats it enlarged.
  header, _, content = figures.data_uri(drawn()).partition(',')
  assert header == 'data:image/svg+xml;base64' and b'<svg' in base64.b64decode(content)
  assert figures.data_uri(drawn()) == figures.data_uri(drawn())  # without date and random identifiers
  noise = drawn(np.random.default_rng(0).random((300, 300)))
  assert figures.data_uri(noise).startswith('data:image/png;base64,')


def test_missing_matplotlib_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)  # as if it was not installed
  with pytest.raises(errors.UserError, match=r"^matplotlib = 'missing': .*pip install 'at_jax\[analysis\]'$"):
    figures.new()


def contrast(color):
  """Contrast ratio with white, of the Web Content Accessibility Guidelines 2.1."""
  channels = np.array([int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)])
  linear = np.where(channels <= .04045, channels / 12.92, ((channels + .055) / 1.055) ** 2.4)
  return 1.05 / (linear @ [.2126, .7152, .0722] + .05)


def test_first_colours_are_distinct_and_visible():
  assert len(set(figures.COLORS)) == len(figures.COLORS) == len(figures.MARKERS)
  assert all(contrast(color) > 2 for color in figures.COLORS[:5])


@pytest.mark.parametrize('name', ['figures', 'table', '__main__'])
def test_tables_do_not_load_matplotlib(name, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)  # as if it was not installed
  spec = importlib.util.find_spec(f'at_jax.analysis.{name}')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert name == 'figures' or module.main([str(RESULTS)] if name == 'table' else ['table', str(RESULTS)]) == 0

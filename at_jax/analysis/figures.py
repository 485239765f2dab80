"""Figures of the analyses: colours, captions, and files or data URIs of them.

matplotlib is imported when the first figure is made, because most commands draw none. Figures are made
without pyplot, which keeps every figure of a process in memory.
"""

import base64
from collections.abc import Sequence
import contextlib
import io
import os
import pathlib
import re
from types import ModuleType
from typing import Any, NamedTuple

from at_jax import environment, errors

# Colours that readers with any colour vision tell apart, of Okabe and Ito, Color Universal Design, 2008. The
# yellow is last, because it is faint on white. A line also has a marker of its own, for print in grey.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#F0E442')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
SEQUENTIAL = 'cividis'  # name of a colour map for shares and losses
SMALL = 8  # points, for text that does not fit otherwise

_TEXTS = {'Title': 'title', 'Description': 'caption', 'Comment': 'alt'}  # keywords of PNG, and their fields
_DPI = 160  # of PNG files: a figure 4.6 inches wide is sharp in a column of 400 pixels on a fine screen


class Captioned(NamedTuple):
  """A figure, and what is written about it.

  Attributes:
    name: name of its file, without a suffix; letters, digits, '-' and '_'.
    title: its heading.
    figure: a `matplotlib.figure.Figure`, or the content of a PNG file.
    caption: one sentence that says what to see.
    alt: text for readers who do not see the figure: what it shows, with the main numbers.
  """
  name: str
  title: str
  figure: Any
  caption: str
  alt: str


def _matplotlib() -> ModuleType:
  """The package with its module of figures."""
  try:
    import matplotlib.figure
  except ImportError as error:
    raise errors.UserError('matplotlib', 'missing', "it draws the figures: pip install 'at_jax[analysis]'"
                           ) from error
  return matplotlib


def new(width: float = 4.6, height: float = 3.2) -> Any:
  """Makes an empty figure, of which `figure.subplots(rows, columns)` makes the axes.

  Args:
    width: in inches. Text of 10 points is readable on a screen of 400 pixels if it is at most 4.6.
    height: in inches.

  Returns:
    A `matplotlib.figure.Figure` whose layout fits its labels.

  Raises:
    errors.UserError: if matplotlib is not installed.

  Example:
    >>> axes = new().subplots()
    >>> axes.plot([0, 8], [.5, .25], color=COLORS[0], marker=MARKERS[0])[0].get_color()
    '#0072B2'
  """
  return _matplotlib().figure.Figure((width, height), layout='constrained')


def label(text: str) -> str:
  """Writes a text of a user for a figure, in which matplotlib would read `$…$` as a formula.

  Args:
    text: the text.

  Returns:
    The text with escaped dollars.

  Example:
    >>> label('cost $5')
    'cost \\\\$5'
  """
  return text.replace('$', r'\$')


def listed(names: Sequence[str], values: Sequence[float], most: int = 8) -> str:
  """Lists names with their values, for an alt text.

  Args:
    names: the names.
    values: one number for each.
    most: how many to list.

  Returns:
    The first names with their values, and how many are left out.

  Example:
    >>> listed(['plain', 'rival', 'third'], [50., 20., 10.], 2)
    'plain 50.0, rival 20.0, and 1 more'
  """
  rest = f', and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(f'{name} {value:.1f}' for name, value in zip(names[:most], values, strict=False)) + rest


def _svg(captioned: Captioned) -> bytes:
  """Content of an SVG file, without the date and with reproducible identifiers."""
  file = io.BytesIO()
  with _matplotlib().rc_context({'svg.hashsalt': 'at_jax'}):
    captioned.figure.savefig(file, format='svg', dpi=_DPI, metadata={'Date': None})
  return file.getvalue()


def _png(captioned: Captioned) -> bytes:
  """Content of a PNG file, which has title, caption and alt text too."""
  if isinstance(captioned.figure, bytes):
    return captioned.figure
  file, texts = io.BytesIO(), {key: getattr(captioned, name) for key, name in _TEXTS.items()}
  captioned.figure.savefig(file, format='png', dpi=_DPI, metadata={'Software': None, **texts})
  return file.getvalue()


def write(captioned: Captioned, folder: str | os.PathLike) -> pathlib.Path:
  """Writes a figure as a PNG file with its texts, for `read`. A missing folder is made.

  Args:
    captioned: the figure.
    folder: where to write NAME.png.

  Returns:
    The path of the file.

  Raises:
    errors.UserError: if the folder is full or not writable.
  """
  folder = environment.local_path('folder', folder)
  path = folder / f'{captioned.name}.png'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(captioned))
  except OSError as error:
    raise errors.unwritable(folder, error, field='folder') from error
  return path


def read(field: str, folder: str | os.PathLike) -> list[Captioned]:
  """Reads the figures that `write` has written into a folder, in the order of their names.

  Args:
    field: name of the argument, for the error message.
    folder: the folder. Its other files are left out.

  Returns:
    The figures, as PNG.

  Raises:
    errors.UserError: if there is none, or matplotlib is not installed.
  """
  _matplotlib()  # which installs Pillow
  from PIL import Image
  found = []
  for path in sorted(environment.local_path(field, folder).glob('*.png')):
    with contextlib.suppress(OSError), Image.open(path) as image:  # another file of that name
      texts = getattr(image, 'text', {})  # a JPEG of that name has none
      if texts.keys() >= _TEXTS.keys():
        fields = {name: texts[key] for key, name in _TEXTS.items()}
        found.append(Captioned(name=re.sub(r'[^\w-]+', '-', path.stem), figure=path.read_bytes(), **fields))
  if not found:
    raise errors.UserError(field, str(folder), 'it has no figure of an analysis: name the folder of its '
                           'PNG files')
  return found


def data_uri(captioned: Captioned) -> str:
  """Encodes a figure as the source of an HTML image: SVG or PNG, whichever is shorter.

  Args:
    captioned: the figure.

  Returns:
    A URI that begins with 'data:image/'.
  """
  drawn = {'png': _png(captioned)}
  if not isinstance(captioned.figure, bytes):
    drawn['svg+xml'] = _svg(captioned)
  kind = min(drawn, key=lambda each: len(drawn[each]))
  return f'data:image/{kind};base64,{base64.b64encode(drawn[kind]).decode("ascii")}'

"""Documents of headings, text, tables and figures, as one HTML page without network or as Markdown.

In texts, `name` between backticks is code. Everything else is escaped, because names of folders, warnings and
commands are the user's.
"""

import html
import pathlib
import re
from typing import NamedTuple

from at_jax.analysis import figures, markdown

_STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1a1a1a;
  background: #fff; max-width: 76rem; margin: 0 auto; padding: 0 .75rem 3rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.25rem 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 2px solid #0072b2 }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem }
p, ul { margin: .5rem 0; max-width: 44rem }
li { margin: .2rem 0; overflow-wrap: anywhere }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem }
a { color: #00558c }
/* A shadow at the right edge shows that a table goes on there. */
.wide { overflow-x: auto; border: 1px solid #ccc; margin: .75rem 0; background:
  linear-gradient(270deg, #fff 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(270deg, rgba(0, 0, 0, .3), transparent) 100% 0 / .7rem 100% no-repeat scroll }
/* Separate borders, because those of a cell that stays at the left do not move with it if they collapse. */
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; min-width: 100%;
  font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .35rem .5rem; color: #444 }
caption span { position: sticky; left: .5rem; display: inline-block; max-width: min(85vw, 44rem) }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap; border-top: 1px solid #e2e2e2 }
thead th { vertical-align: bottom; white-space: normal; background: #eef3f7; min-width: 4rem }
thead th:first-child, tbody th { text-align: left; position: sticky; left: 0; background: #fff }
thead th:first-child { background: #eef3f7 }
tbody th { font-weight: normal; min-width: 7rem; white-space: normal; overflow-wrap: break-word }
table.prose td { text-align: left; white-space: normal; min-width: 14rem; overflow-wrap: anywhere }
figure { margin: 1rem 1.5rem 1.5rem 0; width: min(100%, 34rem); display: inline-block; vertical-align: top }
figure h3 { margin-top: 0 }
figure img { width: 100%; height: auto; display: block; border: 1px solid #e2e2e2 }
figcaption { margin-top: .4rem }
summary { cursor: pointer; font-weight: bold; margin-top: 2rem }
@media (min-width: 60rem) { table:not(.prose) tbody th { min-width: 14rem } }
@media print {
  body { font-size: 9pt; max-width: none; padding: 0 }
  nav { display: none }
  .wide { overflow: visible; border: 0; background: none }
  table { font-size: 6.5pt }
  th, td { white-space: normal; padding: 1pt 2pt }
  tbody th, thead th:first-child { position: static; min-width: 0; white-space: normal }
  thead th { min-width: 0 }
  figure, tr { break-inside: avoid }
  figure { width: 8.7cm; margin-right: 2mm }
  h2, h3 { break-after: avoid }
}
"""


class Cells(NamedTuple):
  """A table of texts.

  Attributes:
    caption: what it shows.
    head: one name for each column.
    rows: texts; the first of each row is its name.
    prose: whether its cells are sentences or commands, which may wrap.
  """
  caption: str
  head: list[str]
  rows: list[list[str]]
  prose: bool = False


class Section(NamedTuple):
  """A part of a document under a heading.

  Attributes:
    title: the heading.
    parts: paragraphs (str), lists (list of str), tables and figures.
    folded: whether an HTML page shows the heading only until it is clicked.
  """
  title: str
  parts: list[str | list[str] | Cells | figures.Captioned]
  folded: bool = False


class Page(NamedTuple):
  """A document.

  Attributes:
    title: its title.
    sections: its parts.
  """
  title: str
  sections: list[Section]


def to_html(page: Page) -> str:
  """Writes a document as one HTML page that needs no other file.

  Args:
    page: the document.

  Returns:
    The text of the page.

  Example:
    >>> 'a &lt;b&gt;' in to_html(Page('t', [Section('One', ['a <b>'])]))
    True
  """
  links = ''.join(f'<li><a href="#{_anchor(section.title)}">{_inline(section.title)}</a></li>'
                  for section in page.sections)
  return '\n'.join([
      '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      # The browser itself refuses whatever is not in the file.
      '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
      'style-src \'unsafe-inline\'">',
      f'<title>{html.escape(_plain(page.title))}</title>', f'<style>{_STYLE}</style>', '</head>', '<body>',
      f'<header><h1>{_inline(page.title)}</h1></header>',
      f'<nav aria-label="Contents"><ul>{links}</ul></nav>', '<main>',
      *map(_html_section, page.sections), '</main>', '</body>', '</html>', ''])


def _html_section(section: Section) -> str:
  inside, title = '\n'.join(map(_html_part, section.parts)), _inline(section.title)
  if section.folded:
    return f'<details id="{_anchor(section.title)}">\n<summary>{title}</summary>\n{inside}\n</details>'
  return f'<section id="{_anchor(section.title)}">\n<h2>{title}</h2>\n{inside}\n</section>'


def _html_part(part: str | list[str] | Cells | figures.Captioned) -> str:
  if isinstance(part, str):
    return f'<p>{_inline(part)}</p>'
  if isinstance(part, list):
    return '<ul>' + ''.join(f'<li>{_inline(each)}</li>' for each in part) + '</ul>'
  if isinstance(part, Cells):
    return _html_table(part)
  return (f'<figure id="{html.escape(part.name)}">\n<h3>{_inline(part.title)}</h3>\n<img '
          f'src="{figures.data_uri(part)}" alt="{html.escape(_plain(part.alt))}">\n'
          f'<figcaption>{_inline(part.caption)}</figcaption>\n</figure>')


def _html_table(cells: Cells) -> str:
  name = lambda text: _inline(text).replace('_', '_<wbr>')  # long names wrap after '_'
  head = ''.join(f'<th scope="col">{name(each)}</th>' for each in cells.head)
  rows = '\n'.join(f'<tr><th scope="row">{name(first)}</th>'
                   + ''.join(f'<td>{_inline(each)}</td>' for each in rest) + '</tr>'
                   for first, *rest in cells.rows)
  kind = ' class="prose"' if cells.prose else ''
  # A box that scrolls can be focused, so that it scrolls with the keyboard too.
  return (f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(_plain(cells.caption))}">\n'
          f'<table{kind}>\n<caption><span>{_inline(cells.caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n'
          f'<tbody>\n{rows}\n</tbody>\n</table>\n</div>')


def _inline(text: str) -> str:
  return re.sub('`([^`]*)`', r'<code>\1</code>', html.escape(text))


def _plain(text: str) -> str:
  return text.replace('`', '')


def _anchor(title: str) -> str:
  return re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')


def to_markdown(page: Page, folder: str, pictures: pathlib.Path) -> str:
  """Writes a document as Markdown, and its figures as PNG files.

  Args:
    page: the document.
    folder: path of the figures in the text.
    pictures: where to write them.

  Returns:
    The text.

  Raises:
    errors.UserError: if a figure cannot be written.
  """
  parts = [f'# {_escaped(page.title)}']
  for section in page.sections:
    parts.append(f'## {_escaped(section.title)}')
    for part in section.parts:
      if isinstance(part, figures.Captioned):
        figures.write(part, pictures)
        parts += [f'### {_escaped(part.title)}', f'![{_escaped(_plain(part.alt))}]({folder}/{part.name}.png)',
                  _escaped(part.caption)]
      elif isinstance(part, Cells):
        parts += [f'{_escaped(part.caption)}:', markdown.table(
            [_escaped(cell) for cell in part.head], ([_escaped(cell) for cell in row] for row in part.rows))]
      else:
        parts.append('\n'.join(f'- {_escaped(each)}' for each in part) if isinstance(part, list)
                     else _escaped(part))
  return '\n\n'.join(parts) + '\n'


def _escaped(text: str) -> str:
  """A line of Markdown, in which only code has a meaning; code needs no escapes but in tables."""
  pieces = re.split('(`[^`]*`)', ' '.join(text.split()))
  return ''.join(piece.replace('|', r'\|') if i % 2 else re.sub(r'([\\*_\[\]<>|#`])', r'\\\1', piece)
                 for i, piece in enumerate(pieces))

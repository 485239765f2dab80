"""Prints the files of `speed.py`: AutoAttack's reference code, 'standard' and 'fast' in one sitting."""

import pathlib
from typing import Any

from at_jax.training import records

COMPONENTS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def show_sittings(folder: str) -> None:
  """Prints a table of all networks, one of the components, and the sentences of the audits."""
  found = [records.read_json(path) for path in sorted(pathlib.Path(folder).glob('*.json'))]
  head('network', 'images', 'version', 'seconds', 'of it compiling', 'of the reference', 'gradient passes',
       'forward passes', 'robust', 'verdicts that differ')
  for sitting in found:
    n, reference = sitting['n'], sitting['versions']['reference']
    for name, of in sitting['versions'].items():
      line(f'`{sitting["network"]}`', n, name, f'{of["seconds"]:.0f}', f'{of["compiling"]:.0f}',
           f'{of["seconds"] / reference["seconds"]:.3f}', f'{of["backward"]:,}', f'{of["forward"]:,}',
           f'{len(of["robust"]) / n:.1%}', len(set(of['robust']) ^ set(reference['robust'])))
  print()
  head('network', 'epsilon', 'threads', 'load', *COMPONENTS, 'all')
  for sitting in found:
    ours, theirs = (sitting['versions'][name] for name in ('standard', 'reference'))
    ratios = [ours['components'][name] / max(theirs['components'][name], .1) for name in COMPONENTS]
    line(f'`{sitting["network"]}`', f'{sitting["epsilon"]:.5g}', sitting['threads'],
         ' '.join(f'{load:.1f}' for load in sitting['load']),
         *(f'{ratio:.2f}' for ratio in (*ratios, ours['seconds'] / theirs['seconds'])))
  print()
  for sitting in found:
    print(f'- `{sitting["network"]}`: {sitting["audit"]}')


def head(*cells: str) -> None:
  line(*cells)
  line(*['---'] * len(cells))


def line(*cells: Any) -> None:
  print('|', ' | '.join(map(str, cells)), '|')

"""Prints the files of `speed.py`: AutoAttack's reference code, 'standard' and 'fast' in one sitting."""

import pathlib
from typing import Any

from at_jax.training import records

VERSIONS = ('standard', 'fast', 'fast and audit', 'reference')
COMPONENTS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def read(folder: pathlib.Path | str) -> list[dict[str, Any]]:
  """The files of a folder, in the order of their first image."""
  found = [records.read_json(path) for path in pathlib.Path(folder).glob('*.json')]
  return sorted(found, key=lambda sitting: (sitting['network'], sitting.get('first', 0), sitting['n']))


def num_images(files: list[dict[str, Any]], version: str) -> int:
  """The number of images, from the first on, that a version has attacked."""
  return max((file.get('first', 0) + file['n'] for file in files if version in file['versions']), default=0)


def together(files: list[dict[str, Any]], version: str, n: int) -> dict[str, Any]:
  """The entries of a version in the files of a network that lie in the first n images, as one entry."""
  entries = [file['versions'][version] for file in files
             if version in file['versions'] and file.get('first', 0) + file['n'] <= n]
  total = lambda field: sum(entry[field] for entry in entries)
  components = {name: sum(entry['components'].get(name, 0) for entry in entries)
                for name in entries[0]['components']}
  return {'parts': len(entries), 'components': components, 'robust': sum((e['robust'] for e in entries), [])
          } | {field: total(field) for field in ('seconds', 'compiling', 'forward', 'backward')}


def show_sittings(folder: str) -> None:
  """Prints a table of all networks, one of the components, and the sentences of the audits."""
  networks = {}
  for sitting in read(folder):
    networks.setdefault(sitting['network'], []).append(sitting)
  head('network', 'images', 'parts', 'version', 'seconds', 'of it compiling', 'of the reference',
       'gradient passes', 'forward passes', 'robust', 'verdicts that differ')
  for network, files in networks.items():
    for name in VERSIONS:
      # Audits of parts cannot be added: that of the most images is shown, and the reference on the same ones.
      n = num_images(files, name)
      if not n:
        continue
      alone = [file for file in files if file['n'] == n] if name == 'fast and audit' else files
      of, reference = together(alone, name, n), together(files, 'reference', n)
      line(f'`{network}`', n, of['parts'], name, f'{of["seconds"]:.0f}', f'{of["compiling"]:.0f}',
           f'{of["seconds"] / reference["seconds"]:.3f}', f'{of["backward"]:,}', f'{of["forward"]:,}',
           f'{len(of["robust"]) / n:.1%}', len(set(of['robust']) ^ set(reference['robust'])))
  print()
  head('network', 'epsilon', 'threads', 'load', *COMPONENTS, 'all')
  for network, files in networks.items():
    n = num_images(files, 'reference')
    ours, theirs = (together(files, name, n) for name in ('standard', 'reference'))
    ratios = [ours['components'][name] / max(theirs['components'][name], .1) for name in COMPONENTS]
    line(f'`{network}`', f'{files[0]["epsilon"]:.5g}', files[0]['threads'],
         ' '.join(f'{load:.1f}' for file in files for load in file['load']),
         *(f'{ratio:.2f}' for ratio in (*ratios, ours['seconds'] / theirs['seconds'])))
  print()
  for network, files in networks.items():
    audits = [file for file in files if file['audit']]
    for file in audits[-1:]:
      print(f'- `{network}`: {file["audit"]}')


def head(*cells: str) -> None:
  line(*cells)
  line(*['---'] * len(cells))


def line(*cells: Any) -> None:
  print('|', ' | '.join(map(str, cells)), '|')

"""benchmarks/: the sums of `sittings`, which need no network. The benchmarks themselves run by hand."""

import importlib
import json

import pytest

from tests.fixtures.command_errors import ROOT


@pytest.fixture
def sittings(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('sittings')


def entry(seconds, robust):
  return {'seconds': seconds, 'compiling': 1., 'robust': robust,
          'components': dict.fromkeys(('apgd-ce', 'apgd-t', 'fab-t', 'square'), seconds / 4),
          'forward': 100, 'backward': 10}


def file(first, n, versions, audit=None):
  return {'network': 'net', 'first': first, 'n': n, 'epsilon': .3, 'threads': 2, 'load': [0.], 'audit': audit,
          'versions': versions}


def test_parts_add_up_and_an_audit_counts_alone(sittings, tmp_path, capsys):
  both = lambda seconds, robust: {'standard': entry(seconds, robust), 'reference': entry(2 * seconds, robust)}
  parts = [file(0, 4, both(1., [0, 2])), file(4, 4, both(2., [5])),
           file(0, 8, {'fast and audit': entry(3., [0, 2, 5, 7])}, audit='between 25 % and 50 %')]
  for i, part in enumerate(parts):
    (tmp_path / f'net-{i}.json').write_text(json.dumps(part))
  found = sittings.read(tmp_path)
  assert sittings.num_images(found, 'standard') == 8 and sittings.num_images(found, 'fast') == 0
  whole = sittings.together(found, 'standard', 8)
  assert (whole['seconds'], whole['robust']) == (3., [0, 2, 5])
  assert whole['components'] == dict.fromkeys(sittings.COMPONENTS, .75)
  assert sittings.together(found, 'standard', 4)['seconds'] == 1.
  sittings.show_sittings(tmp_path)
  lines = capsys.readouterr().out.splitlines()
  # standard: 3 of 6 s, 3 of 8 robust, 0 differ; the audit: 3 of 6 s, 4 of 8 robust, image 7 differs.
  assert lines[2] == '| `net` | 8 | 2 | standard | 3 | 2 | 0.500 | 20 | 200 | 37.5% | 0 |'
  assert lines[3] == '| `net` | 8 | 1 | fast and audit | 3 | 1 | 0.500 | 10 | 100 | 50.0% | 1 |'
  assert lines[8] == '| `net` | 0.3 | 2 | 0.0 0.0 0.0 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |'
  assert lines[-1] == '- `net`: between 25 % and 50 %'

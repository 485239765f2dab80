"""Whether the authors' code still computes what reference.json says.

  AT_JAX_AUTHORS=FOLDER python -m pytest -m long tests/authors

FOLDER as in make_reference.py, which this runs; PyTorch is needed too.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.authors.harness import REFERENCE

AUTHORS = os.environ.get('AT_JAX_AUTHORS')


@pytest.mark.long
@pytest.mark.skipif(not AUTHORS, reason='AT_JAX_AUTHORS names no folder of checkouts')
def test_recorder_gives_the_reference(tmp_path):
  pytest.importorskip('torch')
  subprocess.run([sys.executable, '-m', 'tests.authors.make_reference',
                  f'--checkouts={AUTHORS}', f'--output={tmp_path / "reference.json"}'], check=True)
  same(json.loads((tmp_path / 'reference.json').read_text()), json.loads(REFERENCE.read_text()))


def same(found, expected):
  if isinstance(expected, dict):
    assert found.keys() == expected.keys()
    for name in expected:
      same(found[name], expected[name])
  elif isinstance(expected, str):
    assert found == expected  # a commit
  else:  # other versions of PyTorch round otherwise
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)

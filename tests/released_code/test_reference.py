"""The released code still computes the numbers of reference.json.

  AT_JAX_RELEASED_CODE=FOLDER python -m pytest -m long tests/released_code

FOLDER is that of make_reference.py, which this test runs. PyTorch is needed too.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.released_code.harness import REFERENCE

FOLDER = os.environ.get('AT_JAX_RELEASED_CODE')


@pytest.mark.long
@pytest.mark.skipif(not FOLDER, reason='set AT_JAX_RELEASED_CODE to a folder of checkouts')
def test_make_reference_gives_the_same_numbers(tmp_path):
  pytest.importorskip('torch')
  subprocess.run([sys.executable, '-m', 'tests.released_code.make_reference',
                  f'--checkouts={FOLDER}', f'--output={tmp_path / "reference.json"}'], check=True)
  check_equal(json.loads((tmp_path / 'reference.json').read_text()), json.loads(REFERENCE.read_text()))


def check_equal(found, expected):
  if isinstance(expected, dict):
    assert found.keys() == expected.keys()
    for name in expected:
      check_equal(found[name], expected[name])
  elif isinstance(expected, str):
    assert found == expected  # a commit
  else:  # versions of PyTorch differ in rounding
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)

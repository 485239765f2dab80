"""Precision and random starts of every test in this folder."""

import jax
import pytest

from at_jax import attacks
from tests.released_code import problem


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """float64, and the random starts that the released code was given."""
  monkeypatch.setattr(attacks, 'gaussian_start', lambda x, key, index: x + .001 * problem.NOISE)
  with jax.enable_x64(True):
    yield

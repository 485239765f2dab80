"""FGSM-RS, N-FGSM and NuAT equal their released code, which is given the same random starts.

They agree to 1e-10; reference.json keeps twelve digits.
"""

import numpy as np
import pytest

from at_jax.methods import fgsm_rs, inner_attacks, n_fgsm, nuat
from tests.released_code import problem
from tests.released_code.harness import NUMBERS, attack, close, compare, total
from tests.released_code.problem import EPSILON, UNIFORM, X, Y, weights_of


@pytest.fixture(autouse=True)
def starts(monkeypatch):
  monkeypatch.setattr(inner_attacks, 'unit_noise', lambda x, key, index, norm='linf': UNIFORM)


def test_fgsm_rs_equals_the_released_code():
  found = attack(fgsm_rs.fgsm_rs, weights_of(10), Y, num_steps=1, start=X + EPSILON * UNIFORM)
  close(problem.perturbation(found.x), NUMBERS['fgsm_rs']['perturbation'], 1e-10)


def test_n_fgsm_equals_the_released_code():
  found = attack(n_fgsm.n_fgsm, weights_of(10), Y, num_steps=1)
  close(problem.perturbation(found.x), NUMBERS['n_fgsm']['perturbation'], 1e-10)
  assert np.abs(found.x - X).max() > 2.9 * EPSILON


def test_nuat_equals_the_released_code():
  params = weights_of(10)
  found = attack(nuat.nuclear, params, Y, num_steps=1, call=dict(beta=problem.NUAT_BETA))
  close(problem.perturbation(found.x), NUMBERS['nuat']['perturbation'], 1e-10)
  compare('nuat', total(nuat.nuat, found.x, beta=problem.NUAT_BETA), params, 1e-10)
  # The nuclear norm matters to the attack.
  plain = attack(nuat.nuclear, params, Y, num_steps=1, call=dict(beta=0.))
  assert np.abs(plain.x - found.x).max() > EPSILON / 4

"""Every file in configs/: its header, its variants, and a run of two steps."""

import pytest

from at_jax import main
from at_jax.config import command_line
from tests.fixtures.command_errors import ROOT

CONFIGS = sorted(ROOT.glob('configs/*.py'))


@pytest.mark.oldest
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_two_steps(path, tmp_path, capsys):
  code = main.main([f'--config={path}:smoke', f'--workdir={tmp_path}'])
  assert code == 0, capsys.readouterr().err
  steps = [line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
           if '"loss"' in line]
  assert len(steps) == 2


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_command_source_and_results(path):
  text = path.read_text()
  assert f'--config=configs/{path.name}' in text
  assert ('Reference:' in text or 'Source:' in text) and 'Measured' in text


@pytest.mark.parametrize('variant', ['l2', 'l2-small', 'l2-mnist'])
def test_entropy_sgd_has_the_l2_attack_of_pgd_at(variant):
  one, other = (command_line.parse([f'--config={ROOT}/configs/{name}_cifar10.py:{variant}']).config
                for name in ('pgd_at', 'entropy_sgd'))
  assert one.attack == other.attack and one.evaluate.to_dict() == other.evaluate.to_dict()
  assert one.attack.norm == one.evaluate.norm == 'l2'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_evaluation_has_the_adaptive_attacks(path):
  attacks = command_line.parse([f'--config={path}']).config.evaluate.attacks
  assert {'margin100x5', 'scales_pgd20', 'dummies_pgd100'} <= set(attacks)


def test_mnist_in_l2_has_an_l2_radius():
  c = command_line.parse([f'--config={ROOT}/configs/entropy_sgd_cifar10.py:l2-mnist']).config
  # 1.5 is the usual radius for MNIST in L2, as in the paper of DDN; .3 is a radius in L∞.
  assert (c.attack.norm, c.attack.epsilon_255 / 255) == ('l2', 1.5)

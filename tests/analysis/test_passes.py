"""Passes through the network that training takes, and the table and the figure of them."""

import sys

import pytest

from at_jax.analysis import passes
from at_jax.config import command_line
from tests.fixtures import run_folders
from tests.fixtures.command_errors import ROOT


def config_of(name, *fields):
  return command_line.parse([f'--config={ROOT}/configs/{name}', *fields]).config


# By hand, from the formulas. PGD: K = 10 steps and the update. TRADES, MART and NuAT update at x and x'. The
# attacks of TRADES and NuAT compare with clean logits, one forward pass. Consistency has two views,
# GAIR-TRADES two attacks and three updates, AWP a second update.
@pytest.mark.parametrize('name, forward, backward', [
    ('pgd_at', 11, 11), ('trades', 13, 12), ('mart', 12, 12), ('consistency', 22, 22), ('awp', 12, 12),
    ('gair_trades', 24, 23), ('fgsm_rs', 2, 2), ('n_fgsm', 2, 2), ('nuat', 4, 3), ('fgsm_pgi', 3, 3),
    ('free_at', 1, 1)])
def test_passes_of_a_step(name, forward, backward):
  c = config_of(f'{name}_cifar10.py')
  assert passes.of_step(c, c.loss) == (forward, backward)


# :small has K = 5 and eight epochs. DUCAT passes x too in the last three; on TRADES it adds two passes.
# Free-AT has four epochs of four replays. Fine-tuning has 20 clean epochs, then four with a teacher.
@pytest.mark.parametrize('name, forward, backward', [
    ('pgd_at_cifar10.py:small', 48, 48), ('n_fgsm_cifar10.py:small', 16, 16),
    ('at_jax_cifar10.py:small', 32, 32),  # 16 epochs of one step and an update
    ('at_jax_cifar10.py:third-small', 16, 16),
    ('free_at_cifar10.py:small', 16, 16), ('ducat_cifar10.py:small', 5 * 6 + 3 * 7, 5 * 6 + 3 * 7),
    ('ducat_trades_cifar10.py:small', 5 * 8 + 3 * 10, 5 * 7 + 3 * 9),
    ('finetune_cifar10.py:small', 20 + 4 * (5 + 1 + 2 + 1), 20 + 4 * (5 + 2))])
def test_passes_of_a_training(name, forward, backward):
  assert passes.of_training(config_of(name)) == (forward, backward)


@pytest.mark.parametrize('size', ['', '-small', '-mnist'])
def test_third_takes_at_most_a_third_of_the_passes_of_pgd_at(size):
  third = config_of(f'at_jax_cifar10.py:third{size}')
  whole = config_of(f'pgd_at_cifar10.py{size.replace("-", ":")}')
  assert all(ours <= theirs / 3 for ours, theirs in zip(passes.of_training(third), passes.of_training(whole)))


def test_weights_are_not_perturbed_before_fine_tuning():
  c = config_of('finetune_cifar10.py:small', '--config.awp_gamma=.01')
  # As above, with a second update in the four epochs of fine-tuning only.
  assert passes.of_training(c) == (20 + 4 * (5 + 1 + 2 * 2 + 1), 20 + 4 * (5 + 2 * 2))


def test_fine_tuning_on_adversarial_examples_alone_takes_two_passes():
  c = config_of('finetune_cifar10.py:pretrained', '--config.finetune.source=model.pt')
  assert passes.of_step(c, 'finetune') == (2, 2)


def test_table_and_figure_have_the_passes_of_every_method(tmp_path, capsys, monkeypatch):
  for name, loss, robust in (('plain', 'pgd_at', 20), ('trades', 'trades', 16), ('free', 'free_at', 10)):
    run_folders.evaluated(tmp_path / f'{name}-0', robust, attacks={'autoattack': robust},
                          validated=[(.5, .4)], config=dict(loss=loss, replays=3))
  run_folders.evaluated(tmp_path / 'own-0', 12, attacks={'autoattack': 12}, config=dict(loss='mine.loss'))
  assert passes.main([str(tmp_path), '--against=plain', f'--output={tmp_path / "drawn"}']) == 0
  out = capsys.readouterr().out
  # Four epochs; 500 examples are logged at 100 a second; McNemar's p of 4 against 0 is 2/2⁴.
  assert '| `plain` | 1 | 24 | 24 | 1.00 | 5 | 75.0 | 50.0 |  |  |' in out
  assert '| `trades` | 1 | 32 | 28 | 1.33 | 5 | 75.0 | 40.0 |  | +0 −4, p ≤ 0.12 |' in out
  assert '| `free` | 1 | 12 | 12 | 0.50 |' in out and '`own`' not in out
  assert 'the most expensive, `trades`, takes 32 forward passes' in out
  assert (tmp_path / 'drawn' / 'passes-1.png').exists()
  monkeypatch.setitem(sys.modules, 'matplotlib', None)  # as if it was not installed
  assert passes.main([str(tmp_path), '--against=plain']) == 0
  assert '| `plain` | 1 | 24 | 24 |' in capsys.readouterr().out


def test_unknown_reference_is_one_line(tmp_path, capsys):
  run_folders.evaluated(tmp_path / 'plain-0', 20, attacks={'autoattack': 20}, validated=[(.5, .4)])
  assert passes.main([str(tmp_path), '--against=plan']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("at_jax: --against = 'plan': ") and "'plain'" in line


def test_results_page_has_the_table_of_passes(capsys):
  results = ROOT / 'results'
  assert passes.main([str(results / 'small_cifar10'), str(results / 'passes_small_cifar10')]) == 0
  printed = capsys.readouterr().out.partition('\n\nL2')[0]
  assert printed.count('_cifar10') > 25 and printed in (results / 'README.md').read_text(encoding='utf-8')


def test_missing_run_is_one_line(tmp_path, capsys):
  assert passes.main([str(tmp_path)]) == 2
  assert capsys.readouterr().err.startswith('at_jax: RUN = ')
  run_folders.going(tmp_path / 'x-0')
  assert passes.main([str(tmp_path)]) == 2
  assert 'none of them is evaluated: use --mode=evaluate' in capsys.readouterr().err
  (run_folders.evaluated(tmp_path / 'y-0', 8) / 'config.json').unlink()
  assert passes.main([str(tmp_path / 'y-0')]) == 2
  assert 'y-0' in (line := capsys.readouterr().err) and 'there is no config.json in it: add' in line

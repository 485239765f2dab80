"""The command `python -m at_jax.plan`: errors, arithmetic, cache, and libtpu where it is installed."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from at_jax import plan
from at_jax.training import ahead_of_time

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = f'--config={ROOT}/configs/pgd_at_cifar10.py:mnist-smoke'


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
  """An empty cache folder; what the command sets for libtpu is undone."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for name in ('JAX_PLATFORMS', 'AT_JAX_CACHE', *plan._NO_TPU):
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)


@pytest.mark.parametrize('arguments, expected', [
    (['--topology=v5e:2x4'], "--config = '': use python -m at_jax.plan"),
    ([SMOKE], "--topology = '': use a chip and the layout of the chips of one host; known: v5e:1x1, "),
    ([SMOKE, '--topology=v5e2x4'], "--topology = 'v5e2x4': use a chip"),
    ([SMOKE, '--topology=v5e2x4'], "did you mean 'v5e:2x4'? known: v5e:1x1, v5e:2x2, v5e:2x4, v5p:2x2x1, "),
    ([SMOKE, '--topology=v5e:2x4', '--workdir=x'], "command line = '--workdir=x': not a flag"),
])
def test_errors_are_one_line(arguments, expected, capsys):
  assert plan.main(arguments) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('at_jax: ') and expected in line


def test_without_libtpu_the_line_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(plan, '_NEEDED', ('no_such_package',))
  assert plan.main([SMOKE, '--topology=v5e:2x4']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert "missing packages = 'no_such_package': pip install 'at_jax[plan]'" in line


@pytest.mark.parametrize('flops, accessed, seconds, bound', [(600, 10, 6, 'FLOPs'), (100, 80, 8, 'HBM')])
def test_roofline_by_hand(flops, accessed, seconds, bound):
  # 100 FLOPs and 10 bytes of HBM a second.
  found = plan.roofline(flops, accessed, plan.Chip(100., 10., 1., ()))
  assert found.seconds == seconds and found.bound == bound


@pytest.fixture
def reports(monkeypatch):
  """Reports that stand in for those of libtpu, by program, and the programs that were compiled."""
  # What the parts need must not count: the run executes none of them.
  attack = {'flops': 2e12, 'hbm_bytes': 1e9, 'bytes': 5e9, 'collectives': {}, 'memory': {'total': 2**50}}
  found = {'run': {'flops': -1., 'hbm_bytes': -1., 'bytes': -1., 'collectives': {'all-reduce': 35},
                   'memory': {'argument': 2**30, 'temp': 2**29, 'total': 3 * 2**29}},
           'update': attack | {'flops': 4e12, 'collectives': {'all-reduce': 35}}, 'attack of 1': attack,
           'attack of 2': attack | {'flops': 3.5e12, 'hbm_bytes': 2e9, 'bytes': 7e9}}
  compiled = []
  lower = lambda name: jax.jit(lambda x: x + list(found).index(name)).lower(1.)  # texts that differ

  def report(lowered):
    name = next(name for name in found if lower(name).as_text() == lowered.as_text())
    compiled.append(name)
    return found[name]

  phase = ahead_of_time.Phase('pgd_at', 86, 3, {name: functools.partial(lower, name) for name in found})
  monkeypatch.setattr(ahead_of_time, 'phases', lambda run, devices: [phase])
  monkeypatch.setattr(plan, '_NEEDED', ())
  monkeypatch.setattr(plan, '_versions', lambda: {'libtpu': '1'})
  monkeypatch.setattr(plan, '_devices', lambda topology: jax.devices()[:1])
  monkeypatch.setattr(ahead_of_time, 'report', report)
  return found, compiled


def test_the_command_prints_the_estimate_of_the_run(reports, capsys, monkeypatch):
  # A step has 4 + 2 + 2 · 1.5 = 9 TFLOP, 45.69 ms at 197 TFLOP/s, and 1 + 1 + 2 · 1 = 4 GB of HBM, 4.88 ms at
  # 819 GB/s, among 5 + 5 + 2 · 2 = 14 GB.
  # The run has 86 steps: 86 · 45.69 ms = 3.93 s.
  found, compiled = reports
  arguments = [SMOKE, '--topology=v5e:1x1']
  assert plan.main(arguments) == 0
  out = capsys.readouterr().out
  for line in ('v5e:1x1: 1 chip, batch 1384 (1384 a chip), float32, digits',
               'phase pgd_at: 86 steps, each with an attack of 3 steps',
               '1,536.0 MiB (MiB: argument 1024.0, temp 512.0)',
               '9,000.0 GFLOP, 14.00 GB read and written, 4.00 GB of them in HBM',
               '35 all-reduce; in the attack: none',
               '45.69 ms, bound by FLOPs (FLOPs 45.69 ms, HBM 4.88 ms)', 'estimate of the run: 3.93 s',
               'fits: 1.50 GiB of the 15.75 GiB of a chip'):
    assert line in out
  assert compiled == list(found)
  assert plan.main(arguments) == 0
  second = capsys.readouterr()
  assert second.out == out and len(compiled) == 4 and second.err.count('compiled before') == 4
  monkeypatch.setattr(plan, '_versions', lambda: {'libtpu': '2'})
  assert plan.main(arguments) == 0 and len(compiled) == 8
  monkeypatch.setattr(plan, '_REPORT_VERSION', 0)
  assert plan.main(arguments) == 0 and len(compiled) == 12


@pytest.mark.parametrize('memory, expected', [
    ({'total': 20 * 2**30}, 'needs 20.00 GiB of the 15.75 GiB'),
    ({'total': 20 * 2**30, 'limit': 15 * 2**30}, 'needs 20.00 GiB of the 15.00 GiB'),
    # The compiler rounds both numbers of its refusal.
    ({'total': 15 * 2**30, 'limit': 15 * 2**30}, 'needs 15.00 GiB of the 15.00 GiB')])
def test_a_run_that_does_not_fit_is_said_to(reports, memory, expected, capsys):
  found, compiled = reports
  found['run'] = {'memory': memory}
  assert plan.main([SMOKE, '--topology=v5e:1x1']) == 1
  assert capsys.readouterr().out.splitlines()[-1] == f'does not fit: phase pgd_at {expected} of a chip'
  assert compiled == ['run']  # the parts of a step are not compiled


@pytest.mark.parametrize('part', ['update', 'attack of 2'])
def test_a_part_that_does_not_fit_leaves_the_verdict(reports, part, capsys):
  found, compiled = reports
  found[part] = {'memory': {'total': 20 * 2**30, 'limit': 15 * 2**30}}
  assert plan.main([SMOKE, '--topology=v5e:1x1']) == 0
  out = capsys.readouterr().out
  for line in (f"not known: program '{part}' needs 20.00 GiB of the 15.00 GiB of a chip; compiled for ",
               'estimate of a step   not known', 'estimate of the run: not known',
               f"in the attack: {'none' if part == 'update' else 'not known'}\n",
               'fits: 1.50 GiB of the 15.75 GiB of a chip'):
    assert line in out
  assert compiled == list(found)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason="needs libtpu: pip install 'at_jax[plan]'")
def test_libtpu_compiles_a_small_run(tmp_path):
  def command(*arguments):
    return subprocess.run([sys.executable, '-m', 'at_jax.plan', *arguments], cwd=ROOT, text=True, check=False,
                          capture_output=True, env=os.environ | {'XDG_CACHE_HOME': str(tmp_path)})

  fits = command(SMOKE, '--topology=v5e:2x4', '--config.attack.num_steps=3')
  assert fits.returncode == 0, fits.stderr
  assert 'all-reduce; in the attack: none' in fits.stdout and '\nfits: ' in fits.stdout

"""The audit of a fast version: coverage of its interval, its sample, and its place in an evaluation."""

import functools
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats

from at_jax import attacks
from at_jax.attacks.autoattack import audit, components
from tests.fixtures import killed_run, processes, small_models

RESULTS = pathlib.Path(__file__).parents[3] / 'results' / 'small_cifar10'
SIZES = ((1, 1), (2, 1), (5, 2), (30, 10), (60, 59), (60, 60), (249, 200), (400, 40))
interval = functools.cache(audit.interval)


@pytest.mark.parametrize('survivors, sampled', SIZES)
def test_interval_is_all_numbers_with_both_tails(survivors, sampled):
  marked = np.arange(survivors + 1)
  for fallen in range(0, sampled + 1, max(1, sampled // 20)):
    x = scipy.stats.hypergeom(survivors, marked, sampled)
    inside, = np.nonzero((x.sf(fallen - 1) > .025) & (x.cdf(fallen) > .025))
    assert interval(survivors, sampled, fallen) == (inside[0], inside[-1])
    assert len(inside) == inside[-1] - inside[0] + 1


@pytest.mark.parametrize('survivors, sampled', SIZES)
def test_interval_covers_every_number_with_95_percent(survivors, sampled):
  # The probability that the interval has K in it, summed over all outcomes k of the sample.
  low, high = np.array([interval(survivors, sampled, k) for k in range(sampled + 1)]).T
  marked = np.arange(survivors + 1)[:, None]
  probability = scipy.stats.hypergeom.pmf(np.arange(sampled + 1), survivors, marked, sampled)
  coverage = (probability * ((low <= marked) & (marked <= high))).sum(axis=1)
  assert coverage.shape == (survivors + 1,) and coverage.min() >= .95 - 1e-9  # the error of scipy's sum
  if sampled == survivors:
    assert (low == high).all()


def test_large_audit_agrees_with_binomial_limits():
  # A sample of very many survivors is nearly binomial; Clopper and Pearson's limits are quantiles of beta.
  survivors, sampled, fallen = 10**7, 200, 3
  ends = scipy.stats.beta.ppf([.025, .975], [fallen, fallen + 1], [sampled - fallen + 1, sampled - fallen])
  np.testing.assert_allclose(np.divide(interval(survivors, sampled, fallen), survivors), ends, rtol=1e-4)


def test_audits_of_pgd_cover_autoattack_on_trained_networks():
  # PGD-20 is a weak fast version: AutoAttack fools 0 to 42 % of its survivors on these networks. Three of the
  # 37 have nearly no survivors.
  random, covered = np.random.RandomState(0), 0
  paths = sorted(RESULTS.glob('*/verdicts.npz'))
  rows = [np.load(path) for path in paths]
  rows = [(row['best/robust/pgd20'], row['best/robust/autoattack']) for row in rows]
  rows = [row for row in rows if row[0].sum() > 60]
  assert len(rows) >= 34
  for trial in range(1000):
    fast, autoattack = rows[trial % len(rows)]
    survivors, n = np.flatnonzero(fast), len(fast)
    truth = (fast & autoattack).mean()
    sample = random.permutation(survivors)[:(20, 60, 150)[trial % 3]]
    found = audit.summarise(n, len(survivors), len(sample), int((~autoattack[sample]).sum()))
    covered += found.low - 1e-9 <= truth <= found.high + 1e-9
  # With a coverage of exactly .95 there would be 950 ± 7 of 1,000; 930 is three standard deviations below.
  assert covered >= 930


def test_sample_is_uniform_and_follows_the_index():
  robust, index = np.arange(12) % 2 == 0, np.arange(100, 112)
  draw = lambda seed, sampled=2: audit.choose(jax.random.key(seed), index, robust, sampled)
  counts = sum(draw(seed).astype(int) for seed in range(120))
  assert not counts[1::2].any() and counts.sum() == 240
  assert scipy.stats.chisquare(counts[::2]).pvalue > .001
  order = np.random.RandomState(0).permutation(12)
  again = audit.choose(jax.random.key(0), index[order], robust[order], 2)
  np.testing.assert_array_equal(again, draw(0)[order])
  np.testing.assert_array_equal(draw(0, 3) & ~draw(0), draw(0, 3) ^ draw(0))  # a larger sample adds examples
  np.testing.assert_array_equal(draw(0, 9), robust)
  sample = draw(0)
  with jax.enable_x64(True):
    np.testing.assert_array_equal(draw(0), sample)
  assert not audit.choose(jax.random.key(0), index, np.zeros(12, bool), 2).any()


def test_sentence_has_one_number_where_all_are_audited():
  sentence = lambda *numbers: str(audit.summarise(*numbers))
  assert sentence(1000, 249, 200, 0) == (
      'Robust accuracy under fast and AutoAttack is between 24.7 % and 24.9 % (95 %, 200 of 249 survivors '
      'audited, none fell); fast alone: 24.9 %')
  assert sentence(1000, 150, 150, 1) == (
      'Robust accuracy under fast and AutoAttack is 14.9 % (all 150 survivors audited, 1 fell); fast alone: '
      '15.0 %')
  assert sentence(1000, 0, 0, 0) == (
      'Robust accuracy under fast and AutoAttack is 0.0 % (no survivors to audit); fast alone: 0.0 %')
  assert sentence(1000, 0, 0, 0, 'apgd-ce, square').startswith(
      'Robust accuracy under apgd-ce, square and AutoAttack is 0.0 %')


# Square with few queries misses most of what AutoAttack finds. The programs are those of test_state_file.
def run(version='fast', labels=None, **options):
  logits_fn, x, y = small_models.network(n=20)
  options = dict(epsilon=.05, batch_size=5) | small_models.QUICK | options
  return attacks.autoattack(logits_fn, x, y if labels is None else labels, small_models.KEY, version=version,
                            **options)


fast = functools.partial(run, attacks=('square',))


def test_verdicts_of_the_sample_are_those_of_a_whole_run():
  alone, whole, audited = fast(), run('standard'), fast(audit=8)
  survivors, sample = alone.robust, audited.audited
  assert alone.audit is None and not alone.audited.any()
  assert survivors.sum() > 8 == sample.sum() and not (sample & ~survivors).any()
  np.testing.assert_array_equal(audited.robust[sample], whole.robust[sample])
  np.testing.assert_array_equal(audited.robust[~sample], survivors[~sample])
  np.testing.assert_array_equal(audited.components['square'], survivors)
  fallen = int((sample & ~whole.robust).sum())
  assert 0 < fallen < 8
  assert audited.audit == audit.summarise(20, int(survivors.sum()), 8, fallen, 'square')
  assert str(audited.audit).startswith('Robust accuracy under square and AutoAttack is between')
  assert audited.audit.low <= (survivors & whole.robust).mean() <= audited.audit.high <= survivors.mean()
  names = [f'audit/{name}' for name in whole.components]
  assert list(audited.components) == list(audited.seconds) == ['square', *names]
  assert list(audited.passes) == ['square', *names, 'checks']
  assert audited.passes['square'] == alone.passes['square']
  np.testing.assert_array_equal(audited.components[names[-1]], audited.robust)
  # Points of fallen examples are in x, and are wrong.
  logits_fn, x, y = small_models.network(n=20)
  wrong = np.asarray(logits_fn(audited.x)).argmax(axis=1) != y
  np.testing.assert_array_equal(wrong, ~audited.robust)
  # With all survivors there is one number, that of both attacks.
  complete = fast(audit=20)
  np.testing.assert_array_equal(complete.robust, survivors & whole.robust)
  assert complete.audit.low == complete.audit.high == complete.robust.mean()
  # Nothing is left to audit.
  none = fast(audit=8, labels=(y + 1) % 5)
  assert none.audit == (20, 0, 0, 0, 0., 0., 'square') and not none.audited.any()


def test_a_survivor_takes_1910_gradients_and_161_of_fast():
  # The numbers of docs/evaluation.md. APGD-CE takes 101 gradients, APGD-T 9 · 101 and FAB-T 9 · 100. FAB
  # evaluates each new point too, and Square makes 5,000 queries and its start.
  def total(version, direction):
    parts = components.plan(components.VERSIONS[version], 'linf', version, 10, 100, 5000)
    return sum(len(p.runs) * p.stepper.length * getattr(p.stepper, direction) for p in parts)

  assert total('standard', 'backward') == 101 + 9 * 101 + 9 * 100 == 1910
  assert total('standard', 'forward') == 1910 + 9 * 100 + 5001 == 1910 + 5901
  # 51 gradients of the soft DLR, 9 to rank the classes and 101 towards the nearest.
  assert total('fast', 'backward') == total('fast', 'forward') == 51 + 9 + 101 == 161


class Killed(Exception):
  """Ends an evaluation at a moment of the test's choosing."""


def test_audit_killed_many_times_resumes_to_the_same_interval(tmp_path):
  whole, seen = fast(audit=8), []
  while True:
    calls = 0

    def kill_at_the_fifth_call(progress):
      nonlocal calls
      calls += 1
      if calls == 5:
        seen.append(progress)
        raise Killed

    try:
      result = fast(audit=8, state_path=tmp_path / 'state.npz', save_every=(0., 1e9)[len(seen) % 2],
                    progress=kill_at_the_fifth_call)
      break
    except Killed:
      pass
  assert sum(progress.attack.startswith('audit/') for progress in seen) >= 5
  for progress in seen:  # the accuracy so far is that of all examples
    assert whole.robust.mean() <= progress.accuracy <= 1
  assert result.audit == whole.audit and result.passes == whole.passes
  for name in ('audited', 'robust', 'x'):
    np.testing.assert_array_equal(getattr(result, name), getattr(whole, name))
  for name, robust in whole.components.items():
    np.testing.assert_array_equal(result.components[name], robust)
  # A file of a finished evaluation gives its result, and one of another sample is refused.
  assert fast(audit=8, state_path=tmp_path / 'state.npz').audit == whole.audit
  with pytest.raises(ValueError, match=r'another evaluation \(different audit\): remove it'):
    fast(audit=9, state_path=tmp_path / 'state.npz')


@pytest.mark.parametrize('value', [-1, True, 2., '8', None])
def test_audit_is_a_number_of_examples(value):
  with pytest.raises(ValueError, match=f'^audit = {value!r}: use a whole number above 0, or 0 for none$'):
    fast(audit=value)


def test_other_versions_have_no_audit():
  with pytest.raises(ValueError, match="leave it out with version = 'standard'; it is for version='fast'"):
    run('standard', audit=8)


_EVALUATION = '''
import sys
from tests.fixtures import killed_run
killed_run.run(sys.argv[1], **killed_run.AUDIT)
'''


@pytest.mark.long  # three processes, each of which compiles
def test_process_killed_in_the_audit_finds_the_same_interval(tmp_path):
  start = lambda: subprocess.Popen([sys.executable, '-c', _EVALUATION, tmp_path], text=True,
                                   stdout=subprocess.PIPE, env=processes.environment())
  for name in ('audit/apgd-ce', 'audit/fab-t'):
    process = start()
    while not (line := process.stdout.readline()).startswith(name):
      assert line, f'the evaluation ended before {name}'
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
  final = start()
  assert 'square' not in {line.split()[0] for line in final.communicate()[0].splitlines()}
  assert final.returncode == 0
  whole = killed_run.evaluate(**killed_run.AUDIT)
  with np.load(tmp_path / 'result.npz') as result:
    np.testing.assert_array_equal(result['audited'], whole.audited)
    np.testing.assert_array_equal(result['audit'], whole.audit)
    np.testing.assert_array_equal(result['x'], whole.x)
  assert whole.audit.sampled == 8 and whole.audit.fallen > 0

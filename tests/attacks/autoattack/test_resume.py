"""An evaluation whose process is killed, with no chance to tidy up, ends with the same verdicts."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures import processes
from tests.fixtures.killed_run import ATTACKS, evaluate

_EVALUATION = '''
import sys
from tests.fixtures import killed_run
killed_run.run(sys.argv[1])
'''


def start(folder):
  return subprocess.Popen([sys.executable, '-c', _EVALUATION, folder], text=True,
                          stdout=subprocess.PIPE, env=processes.environment())


@pytest.mark.long  # six processes, each of which compiles
def test_killed_five_times_an_evaluation_ends_with_the_verdicts_of_one_run_through(tmp_path):
  seen, last = [], ''
  for _ in range(5):
    process = start(tmp_path)
    for _ in range(14):
      last = process.stdout.readline()
      assert last, 'the evaluation ended before it was killed five times'
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    seen.append(ATTACKS.index(last.split()[0]))
  # It went on each time, or the later kills would all be in the first attack.
  assert seen == sorted(seen) and len(set(seen)) >= 2, seen
  final = start(tmp_path)
  final.communicate()
  assert final.returncode == 0
  whole = evaluate()
  with np.load(tmp_path / 'result.npz') as result:
    np.testing.assert_array_equal(result['x'], whole.x)
    for name, verdict in whole.components.items():
      np.testing.assert_array_equal(result[name], verdict)
  assert 0 < whole.robust.sum() < 20

"""Scripts of launch/: their syntax, what they start, and the JobSet's fields; with stand-ins for clusters."""

import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
import yaml

from at_jax.config import command_line
from tests.fixtures import processes
from tests.fixtures.command_errors import QUICK, ROOT

LAUNCH = ROOT / 'launch'
SCRIPTS = sorted(LAUNCH.glob('*.sh'))
# Starts the command after its first argument as two tasks of one node, as srun does.
_SRUN = '''#!/usr/bin/env bash
[ "$1 $SRUN_CPUS_PER_TASK" = '--kill-on-bad-exit=1 8' ] || exit 9
shift
export SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=2
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
'''
# Runs the command for a worker in a shell of its own, as ssh does, and prints its arguments.
_GCLOUD = '''#!/usr/bin/env bash
printf '%s\\n' "${@:1:7}"
bash -c "${8#--command=}"
'''


def stand_in(folder, name, text):
  """An executable in a folder."""
  path = pathlib.Path(folder) / name
  path.write_text(text)
  path.chmod(0o755)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_script_is_correct_bash(path):
  subprocess.run(['bash', '-n', path], check=True)
  if shutil.which('shellcheck'):
    subprocess.run(['shellcheck', '--external-sources', path], check=True, cwd=ROOT)


def test_tpu_workers_get_the_arguments_unchanged(tmp_path):
  stand_in(tmp_path, 'gcloud', _GCLOUD)
  stand_in(tmp_path, 'python3', '#!/usr/bin/env bash\nprintf "%s\\n" "$PWD" "$@"\n')
  (tmp_path / 'at_jax').mkdir()
  arguments = ['--config=configs/X.py', "--config.evaluate.attacks=('pgd20', 'fgsm')", '--workdir=~/a b']
  environ = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'TPU_NAME': 'pod', 'ZONE': 'z'}
  lines = subprocess.run(['bash', LAUNCH / 'tpu_vm.sh', *arguments], check=True, text=True, cwd=tmp_path,
                         env=environ, stdout=subprocess.PIPE).stdout.splitlines()
  assert lines == ['compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=z', '--worker=all',
                   str(tmp_path / 'at_jax'), '-m', 'at_jax.main', '--distributed=auto', *arguments]


def rendered(index):
  """(command line, number of pods) of one pod of the JobSet, as Kubernetes fills in the variable."""
  jobset = yaml.safe_load((LAUNCH / 'kubernetes.yaml').read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  job, = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert spec['completionMode'] == 'Indexed' and spec['parallelism'] == spec['completions']
  pod = spec['template']['spec']
  container, = pod['containers']
  assert [each['name'] for each in pod['volumes']] == [each['name'] for each in container['volumeMounts']]
  assert job['replicas'] == 1 and pod['restartPolicy'] == 'Never'
  # The first pod's name, and the subdomain that JobSet makes of its own.
  host = f'{jobset["metadata"]["name"]}-{job["name"]}-0-0.{jobset["metadata"]["name"]}'
  arguments = [each.replace('$(JOB_COMPLETION_INDEX)', str(index)) for each in container['args']]
  assert arguments[0].startswith(f'--distributed={host}:')
  return container['command'] + arguments, spec['completions']


def test_every_pod_of_the_jobset_is_another_process(monkeypatch):
  monkeypatch.chdir(ROOT)
  for index in range(rendered(0)[1]):
    (python, *module, _, _, _), count = rendered(index)
    assert (python, module) == ('python', ['-m', 'at_jax.main'])
    found = command_line.parse(rendered(index)[0][3:])
    assert (found.cluster.count, found.cluster.index, found.mode) == (count, index, 'train')


def test_slurm_script_outside_sbatch_ends_with_one_line():
  environ = {name: value for name, value in os.environ.items() if name != 'SLURM_CPUS_PER_TASK'}
  done = subprocess.run(['bash', LAUNCH / 'slurm.sh'], env=environ, text=True, capture_output=True)
  assert done.returncode and len(done.stderr.splitlines()) == 1
  assert 'SLURM_CPUS_PER_TASK: use sbatch with --cpus-per-task' in done.stderr


@pytest.mark.long
def test_slurm_script_trains_with_two_tasks(tmp_path):
  stand_in(tmp_path, 'srun', _SRUN)
  stand_in(tmp_path, 'python', f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
  environ = processes.environment() | {'SLURM_JOB_ID': str(random.SystemRandom().randrange(10**6)),
                                       'SLURM_CPUS_PER_TASK': '8',  # of sbatch --cpus-per-task
                                       'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
  done = subprocess.run(['bash', LAUNCH / 'slurm.sh', QUICK, f'--workdir={tmp_path}/run'], cwd=ROOT,
                        env=environ, text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('digits, 16 test examples') == 1  # of process 0
  assert (tmp_path / 'run' / 'results.json').exists()


@pytest.mark.long
def test_pods_of_the_jobset_train_together(tmp_path):
  def command(address, index):
    (_, *module, place, _, _), _ = rendered(index)
    _, count, index = place.split(',')
    return [sys.executable, *module, f'--distributed={address},{count},{index}', QUICK,
            f'--workdir={tmp_path}/run']

  for code, _, err in processes.finish(processes.start_together(rendered(0)[1], command)):
    assert code == 0, err
  assert (tmp_path / 'run' / 'results.json').exists()

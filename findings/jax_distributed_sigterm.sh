#!/usr/bin/env bash
# After jax.distributed.initialize, SIGTERM no longer ends a process, and no Python handler runs either.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11.
# Behaviour: initialize starts a service that takes over the C-level handler of SIGTERM, as the notice of a
# preemption. Python does not see the change: signal.getsignal still returns what was there before, the default
# action or the program's own handler. The signal is logged and has no other effect. Setting the handler again
# after initialize, to the very value that getsignal returns, brings it back.
# Expected: a call that connects processes leaves signals alone, or the program's own handler wins, or
# getsignal says who handles the signal. A trainer that saves its state in a handler of SIGTERM loses the state
# once it runs on several hosts, because a scheduler follows SIGTERM with SIGKILL.
# Output:
#   default action, alone: exit code -15
#   default action, after initialize: survived, getsignal says default
#   default action, set again: exit code -15
#   own handler, alone: handler ran
#   own handler, after initialize: survived, getsignal says own
#   own handler, set again: handler ran
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cat > "$folder/process.py" <<'PROCESS'
import os
import signal
import socket
import sys
import time

import jax

who, case = sys.argv[1:]


def own(*_):
  print('handler ran', flush=True)
  os._exit(0)


if who == 'own':
  signal.signal(signal.SIGTERM, own)
if case != 'alone':
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  jax.distributed.initialize(f'localhost:{port}', 1, 0)
if case == 'again':
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
name = {own: 'own', signal.SIG_DFL: 'default'}[signal.getsignal(signal.SIGTERM)]
print(f'survived, getsignal says {name}', flush=True)
PROCESS
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/process.py" <<'END' | tee "$folder/output"
import subprocess
import sys

cases = {'alone': 'alone', 'initialize': 'after initialize', 'again': 'set again'}
for who, title in {'default': 'default action', 'own': 'own handler'}.items():
  for case, text in cases.items():
    ended = subprocess.run([sys.executable, sys.argv[1], who, case], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True)
    print(f'{title}, {text}: {ended.stdout.strip() or f"exit code {ended.returncode}"}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

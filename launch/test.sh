#!/usr/bin/env bash
# Makes .venv, installs at_jax for the CPU and runs the tests; --all runs the long ones too, with what
# they compare against (PyTorch) and, in a second environment, the oldest jax that is supported.
#   bash launch/test.sh [--all] [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
# Two workers: most of the time goes into compiling, which one process does on one core.
if [ "${1:-}" = --all ]; then
  shift
  (source launch/environment.sh .venv-oldest all-cpu,dev 'jax==0.7.2' 'jaxlib==0.7.2' 'flax==0.11.2'
   python -m pytest -q -n 2 -m oldest tests)
  export JAX_DISABLE_MOST_OPTIMIZATIONS=0  # programs as users have them
  source launch/environment.sh .venv-peers all-cpu,dev,peers
  exec python -m pytest -q -n 2 --doctest-modules tests at_jax "$@"
fi
source launch/environment.sh .venv all-cpu,dev
exec python -m pytest -q -n 2 --doctest-modules -m 'not long' tests at_jax "$@"

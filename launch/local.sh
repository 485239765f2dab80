#!/usr/bin/env bash
# Creates .venv, installs at_jax for the CPU and runs at_jax.main, by default on the quickstart.
#   bash launch/local.sh
#   bash launch/local.sh --config=configs/ducat_cifar100.py:small
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh .venv all-cpu
if [ $# -eq 0 ]; then set -- --config=configs/quickstart.py; fi
exec python -m at_jax.main "$@"

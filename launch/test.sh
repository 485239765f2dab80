#!/usr/bin/env bash
# Creates .venv, installs at_jax for the CPU, and runs ruff and the tests that are not marked `long`.
#   bash launch/test.sh [--all | --newest] [arguments of pytest]
# --all     also runs the long tests, which compare with PyTorch and foolbox, and in a second environment
#           the tests marked `oldest` with the oldest supported jax.
# --newest  runs the quick tests with the newest packages, on Python 3.13 or 3.12 if one is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
# Two workers, because one process compiles on one core; tests of a file share fixtures and programs. Files run
# in the order of tests/conftest.py.
suite=(python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder)
case "${1:-}" in
  --all)
    shift
    (source launch/environment.sh .venv-oldest all-cpu,dev,torch 'jax==0.7.2' 'jaxlib==0.7.2' 'flax==0.11.2' \
       torch==2.13.0
     "${suite[@]}" -m oldest tests)
    source launch/environment.sh .venv-peers all-cpu,dev,peers torch==2.13.0  # that of the recorded numbers
    # The one module of adv-lib that a test compares with needs neither torchvision nor visdom.
    python -m pip install --quiet --disable-pip-version-check --no-deps adv-lib==0.2.8
    ruff check .
    exec "${suite[@]}" --doctest-modules tests at_jax "$@" ;;
  --newest)
    shift
    for python in python3.13 python3.12 ~/.pyenv/versions/3.1{3,2}.*/bin/python; do
      if "$python" -c 'import venv' 2> /dev/null; then PYTHON=${PYTHON:-$python}; fi
    done
    rm -f .venv-newest/.installed-*  # upgrade an environment of an earlier run
    source launch/environment.sh .venv-newest all-cpu,dev --upgrade --upgrade-strategy eager
    exec "${suite[@]}" -m 'not long' tests "$@" ;;
esac
source launch/environment.sh .venv all-cpu,dev
ruff check .
# PyTorch is not installed here, so the examples of models/torch_model.py are left out.
exec "${suite[@]}" --doctest-modules --doctest-ignore-import-errors -m 'not long' tests at_jax "$@"

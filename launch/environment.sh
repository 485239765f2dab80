# shellcheck shell=bash
# Sourced by the other scripts: creates the virtual environment $1 with the extras $2 and the further
# arguments of pip $3…, unless it exists, and puts it on the PATH. PYTHON names the interpreter (3.11
# or newer).
venv=$1
extras=$2
stamp="$venv/.installed-$(cksum < setup.py | cut -d' ' -f1)-${extras//[^a-z0-9]/_}"
if [ ! -e "$stamp" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]" "${@:3}"
  touch "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"

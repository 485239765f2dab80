"""findings/: each script has the form that CONTRIBUTING.md states. They run by hand, with a package index."""

import pathlib
import re
import shlex

import pytest

FINDINGS = pathlib.Path(__file__).parent.parent / 'findings'
SCRIPTS = {path.name: path.read_text(encoding='utf-8') for path in sorted(FINDINGS.iterdir())}


@pytest.fixture(params=SCRIPTS)
def script(request):
  return SCRIPTS[request.param]


def test_findings_are_bash_scripts():
  assert SCRIPTS and all(name.endswith('.sh') for name in SCRIPTS)


def test_a_finding_has_the_fields_of_its_comment(script):
  assert re.match(r'#!/usr/bin/env bash\n# \S.*(\n# .*)*\n#\n# Versions: [^#]*', script)
  assert re.findall(r'^# (Versions|Behaviour|Expected|Output):', script, re.MULTILINE) == [
      'Versions', 'Behaviour', 'Expected', 'Output']
  assert re.search(r'^# Output:\n(#   .+\n)+set -euo pipefail$', script, re.MULTILINE)


def test_a_finding_installs_exact_versions(script):
  installs = re.findall(r'^"\$folder/venv/bin/pip" install (.*)$', script, re.MULTILINE)
  packages = [word for line in installs for word in shlex.split(line) if not word.startswith('-')]
  assert packages and all(re.fullmatch(r'[\w-]+==[\w.]+', package) for package in packages)
  assert '://' not in script  # the package index is the reader's


def test_a_finding_runs_without_at_jax(script):
  assert 'at_jax' not in script


def test_a_finding_removes_its_folder_and_compares(script):
  assert 'folder=$(mktemp -d)\ntrap \'rm -rf "$folder"\' EXIT\n' in script
  assert script.endswith('\nEND\ndiff <(sed -n \'s/^#   //p\' "$0") "$folder/output"\n')

#!/usr/bin/env bash
# AutoAttack cannot resume from the state file that it wrote.
#
# Versions: pyautoattack 0.2.0, PyTorch 2.13.0, Python 3.11.
# Behaviour: run_standard_evaluation(state_path=...) writes a JSON file. The set of attacks is written as
# its text, "{'apgd-ce'}", since json.dump is given default=str. On the next call the text is compared with
# the set, they never agree, and the call raises "The state was created with a different set of attacks".
# Expected: the same object, the same data and the same path: the file exists for this purpose. The message
# sends the user to look for another configuration. An evaluation of many hours that was interrupted starts
# again from the beginning.
# Output:
#   first run: robust flags of 8 examples
#   second run: ValueError: The state was created with a different set of attacks to run. You are probably using the wrong state file.
#   in the file: "{'apgd-ce'}"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyautoattack==0.2.0 torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import json
import pathlib
import tempfile

import torch
from pyautoattack import AutoAttack

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
images = torch.rand(8, 3, 2, 2)
labels = model(images).argmax(1)
attack = AutoAttack(model, eps=.5, version='custom', attacks=['apgd-ce'], seed=0)
with tempfile.TemporaryDirectory() as folder:
  path = pathlib.Path(folder) / 'state.json'
  attack.run_standard_evaluation(images, labels, state_path=path)
  state = json.loads(path.read_text())
  print('first run: robust flags of', len(state['_robust_flags']), 'examples')
  try:
    attack.run_standard_evaluation(images, labels, state_path=path)
    print('second run: resumed')
  except ValueError as error:
    print(f'second run: ValueError: {error}')
  print('in the file:', json.dumps(state['_attacks_to_run']))
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

#!/usr/bin/env bash
# AutoAttack reports a model whose outputs are all NaN as 100 % robust on class 0.
#
# Versions: pyautoattack 0.2.0, PyTorch 2.13.0, Python 3.11.
# Behaviour: the predicted class is outputs.max(dim=1)[1], which is 0 where every output is NaN. Examples of
# class 0 count as correctly classified, and no attack changes that. On any other class the same model has
# an accuracy of 0.
# Expected: AutoAttack is the careful reference and checks the model for randomness, for outputs that are
# probabilities and for zero gradients, so one expects it to notice outputs that are not numbers. A diverged
# network scores the share of class 0, 10 % on CIFAR-10: the value of a constant classifier, and so not
# suspicious in a table.
# Output:
#   class 0: robust accuracy 1.0
#   class 1: robust accuracy 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyautoattack==0.2.0 torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import torch
from pyautoattack import AutoAttack


class Diverged(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))

  def forward(self, x):
    return self.network(x) * float('nan')


images = torch.rand(8, 3, 2, 2)
for label in (0, 1):
  labels = torch.full((8,), label)
  attack = AutoAttack(Diverged(), eps=8 / 255, version='custom', attacks=['apgd-ce'], seed=0)
  _, predicted = attack.run_standard_evaluation(images, labels)
  print(f'class {label}: robust accuracy {(predicted == labels).float().mean().item()}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

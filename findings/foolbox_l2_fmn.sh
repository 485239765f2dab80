#!/usr/bin/env bash
# foolbox's minimum-norm attack FMN finds the nearest point in L-infinity, and in L2 the first step's length.
#
# Versions: foolbox 3.3.4, PyTorch 2.13.0, Python 3.11.
# Behaviour: on a linear model, whose distances are known exactly, LInfFMNAttack finds them, while L2FMNAttack
# reports 1.0 for every image and every number of steps. 1.0 is the length of its first step. Its projection
# onto the ball of the current radius divides a norm by itself, so it never shortens anything.
# Expected: a minimum-norm attack on a linear model ends at the boundary; more steps come closer to it. The
# two classes share the whole algorithm, and one of them is right. The point that L2FMNAttack returns is
# misclassified, so the call succeeds, and a mean L2 robustness made of such radii is 20 to 50 times too large.
# Output:
#   exact: Linf [0.0031, 0.0047, 0.0062, 0.0078], L2 [0.02, 0.03, 0.04, 0.05]
#   20 steps: Linf within .001 of it True, L2 [1.0, 1.0, 1.0, 1.0], all misclassified True
#   100 steps: Linf within .001 of it True, L2 [1.0, 1.0, 1.0, 1.0], all misclassified True
#   1000 steps: Linf within .001 of it True, L2 [1.0, 1.0, 1.0, 1.0], all misclassified True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet foolbox==3.3.4 eagerpy==0.30.0 torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import foolbox
import torch

torch.manual_seed(0)
w = torch.randn(60)
w /= w.norm()


class Linear(torch.nn.Module):
  def forward(self, x):
    margin = (x - .5) @ w
    return torch.stack([margin, -margin], 1)


net = Linear().eval()
model = foolbox.PyTorchModel(net, bounds=(0, 1), device='cpu')
x = .5 + torch.linspace(.02, .05, 4)[:, None] * w
y = torch.zeros(4, dtype=torch.long)
l2 = (x - .5) @ w                # |w|_2 = 1, so the margin is the distance
linf = l2 / w.abs().sum()
rounded = lambda values, digits: [round(value, digits) for value in values.tolist()]
print(f'exact: Linf {rounded(linf, 4)}, L2 {rounded(l2, 3)}')
for steps in (20, 100, 1000):
  near, found = (attack(steps=steps)(model, x, y, epsilons=None)[1]
                 for attack in (foolbox.attacks.LInfFMNAttack, foolbox.attacks.L2FMNAttack))
  close = ((near - x).abs().amax(1) - linf).abs().max() < .001
  print(f'{steps} steps: Linf within .001 of it {bool(close)}, L2 {rounded((found - x).norm(dim=1), 3)}, '
        f'all misclassified {bool((net(found).argmax(1) != y).all())}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

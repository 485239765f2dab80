#!/usr/bin/env bash
# FGSM on a model that clips its own input moves all pixels or none, depending on the clip function.
#
# Versions: jax 0.10.2, PyTorch 2.13.0, Python 3.11.
# Behaviour: at a pixel of exactly 0 or 1 the gradient through a clip to [0, 1] is 1 in torch.clamp, 1/2 in
# jnp.clip and 0 in jax.lax.clamp and torch.nn.functional.hardtanh. On a saturated image FGSM then moves
# every pixel that may move, or no pixel.
# Expected: the four functions return the same values, and a clip at the input of a model looks harmless.
# Images of digits and of drawings consist mostly of 0 and 1. A port from jnp.clip to lax.clamp makes such a
# model look robust against every gradient attack that starts at the image.
# Output:
#   torch.clamp: gradient [1.0, 1.0], FGSM moves 8 of 8 pixels, output drops by 2.4
#   torch.nn.functional.hardtanh: gradient [0.0, 0.0], FGSM moves 0 of 8 pixels, output drops by 0.0
#   jnp.clip: gradient [0.5, 0.5], FGSM moves 8 of 8 pixels, output drops by 2.4
#   jax.lax.clamp: gradient [0.0, 0.0], FGSM moves 0 of 8 pixels, output drops by 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 torch==2.13.0

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax
import jax.numpy as jnp
import numpy as np
import torch

image = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
weights = np.array([-1, -1, -1, -1, 1, 1, 1, 1], np.float32)  # The output falls if every pixel moves inwards.


def report(name, gradient, ends):
  moved = np.clip(image - .3 * np.sign(gradient), 0, 1)
  print(f'{name}: gradient {ends}, FGSM moves {(moved != image).sum()} of 8 pixels, '
        f'output drops by {weights @ image - weights @ moved:.1f}')


for name, clip in (('torch.clamp', lambda x: torch.clamp(x, 0, 1)),
                   ('torch.nn.functional.hardtanh', lambda x: torch.nn.functional.hardtanh(x, 0, 1))):
  x = torch.tensor(image, requires_grad=True)
  clip(x).sum().backward()
  report(name, x.grad.numpy() * weights, [x.grad[0].item(), x.grad[-1].item()])
for name, clip in (('jnp.clip', lambda x: jnp.clip(x, 0, 1)),
                   ('jax.lax.clamp', lambda x: jax.lax.clamp(0., x, 1.))):
  gradient = np.asarray(jax.grad(lambda x: clip(x).sum())(image))
  report(name, gradient * weights, [float(gradient[0]), float(gradient[-1])])
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

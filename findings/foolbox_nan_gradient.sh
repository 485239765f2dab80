#!/usr/bin/env bash
# foolbox returns NaN images as successes on JAX where it leaves the pixels alone on PyTorch.
#
# Versions: foolbox 3.3.4, jax 0.10.2, PyTorch 2.13.0, Python 3.11.
# Behaviour: the model takes the edge magnitude sqrt(gx^2 + gy^2), whose gradient is NaN in both frameworks
# where an image is flat. torch.sign(nan) is 0 and jnp.sign(nan) is NaN. On PyTorch FGSM leaves such pixels
# where they are. On JAX it writes NaN into the image; the logits become NaN, argmax is 0, and the attack
# reports success wherever the label is not 0.
# Expected: foolbox runs one implementation on both frameworks through EagerPy, whose promise is that the
# same code gives the same result; the two models agree to rounding on every image. One side reports a
# robust model, the other a broken one, and neither says that a gradient was NaN. The perturbation that
# foolbox reports as successful is no image.
# Output:
#   same predictions: True, of classes [0, 1]
#   JAX: success [False, True], NaN pixels True, pixels of flat regions moved False
#   PyTorch: success [False, False], NaN pixels False, pixels of flat regions moved False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet foolbox==3.3.4 eagerpy==0.30.0 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import foolbox
import jax.numpy as jnp
import numpy as np
import torch


def edges(sqrt, x):
  gx, gy = x[:, 1:, :-1] - x[:, :-1, :-1], x[:, :-1, 1:] - x[:, :-1, :-1]
  return sqrt(gx ** 2 + gy ** 2).reshape(len(x), -1)


class TorchModel(torch.nn.Module):
  def forward(self, x):
    strength = edges(torch.sqrt, x).sum(1)
    return torch.stack([8 - strength, strength - 8], 1)


def jax_model(x):
  strength = edges(jnp.sqrt, x).sum(1)
  return jnp.stack([8 - strength, strength - 8], 1)


images = np.zeros((2, 8, 8), np.float32)
images[0, 2:6, 2:6] = .1 * np.random.default_rng(0).uniform(size=(4, 4))
images[1, 2:6, 2:6] = np.random.default_rng(0).uniform(.9, 1, size=(4, 4)) * (np.indices((4, 4)).sum(0) % 2)
labels = np.asarray(jax_model(images).argmax(-1))
same = (TorchModel()(torch.tensor(images)).argmax(-1).numpy() == labels).all()
print(f'same predictions: {same}, of classes {labels.tolist()}')
flat = np.zeros((8, 8), bool)
flat[0] = True
for name, model, x, y in (
    ('JAX', foolbox.JAXModel(jax_model, bounds=(0, 1)), jnp.asarray(images), jnp.asarray(labels)),
    ('PyTorch', foolbox.PyTorchModel(TorchModel().eval(), bounds=(0, 1), device='cpu'),
     torch.tensor(images), torch.tensor(labels).long())):
  _, found, success = foolbox.attacks.FGSM()(model, x, y, epsilons=.01)
  found = np.asarray(found)
  print(f'{name}: success {np.asarray(success).tolist()}, NaN pixels {bool(np.isnan(found).any())}, '
        f'pixels of flat regions moved {bool((np.abs(found - images)[:, flat] > 0).any())}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

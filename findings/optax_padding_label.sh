#!/usr/bin/env bash
# optax scores a padding label of -1 as the last class with integer labels, and as nothing with one-hot
# labels.
#
# Versions: optax 0.2.8, jax 0.10.2, Python 3.11.
# Behaviour: softmax_cross_entropy_with_integer_labels indexes the logits, so -1 means the last class, with
# a finite loss and a gradient towards that class; C gives a loss of NaN and a finite gradient.
# softmax_cross_entropy(logits, one_hot(labels)) gives a loss of 0 for both.
# Expected: the documentation presents the two functions as one loss for two kinds of labels, so the result
# should not depend on which is called. -1 is the usual label of a padded example in the last batch of an
# evaluation in JAX; a loss of 0 is what the one-hot form taught users to rely on. PyTorch raises an error
# for -1. The mean loss of an evaluation is wrong without a sign of it.
# Output:
#   label 0: integer 2.4076, one-hot 2.4076
#   label -1: integer 0.4076, one-hot 0.0000, gradient [0.09, 0.24, -0.33]
#   label 3: integer nan, one-hot 0.0000, gradient [0.09, 0.24, 0.67]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax
import jax.numpy as jnp
import optax

logits = jnp.array([1., 2., 3.])
loss = optax.softmax_cross_entropy_with_integer_labels
for label in (0, -1, 3):
  one_hot = optax.softmax_cross_entropy(logits, jax.nn.one_hot(label, 3))
  gradient = [round(float(g), 2) for g in jax.grad(loss)(logits, jnp.array(label))]
  print(f'label {label}: integer {loss(logits, jnp.array(label)):.4f}, one-hot {abs(one_hot):.4f}'
        + (f', gradient {gradient}' if label else ''))
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

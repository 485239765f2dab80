#!/usr/bin/env bash
# jax.random.ball with p = inf draws the corners of the cube, not points of the cube.
#
# Versions: jax 0.10.2, Python 3.11.
# Behaviour: jax.random.ball(key, d, p=inf) returns coordinates of -1 and 1 only. It divides a generalized
# normal draw by its own norm; at p = inf that draw has lost its size, and only the signs remain. No error,
# no NaN.
# Expected: the docstring says "Sample uniformly from the unit Lp ball" and p is a float, so p = inf is the
# L-infinity ball, whose coordinates are uniform in [-1, 1] with a mean absolute value of 1/2. It is the
# random start of PGD. p = 1 and p = 2 are right (closed forms: d/(d+1) for the mean norm), and the result
# stays inside the ball, so no check of the ball finds it. A start at epsilon times a corner is a different
# attack.
# Output:
#   p = 1.0: mean norm 0.8 (uniform: 0.8), 0 of 4000 coordinates are -1 or 1
#   p = 2.0: mean norm 0.8 (uniform: 0.8), 0 of 4000 coordinates are -1 or 1
#   p = inf: mean norm 1.0 (uniform: 0.8), 4000 of 4000 coordinates are -1 or 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax
import numpy as np

for p in (1., 2., np.inf):
  draws = np.asarray(jax.random.ball(jax.random.key(0), d=4, p=p, shape=(1000,)))
  norm = np.linalg.norm(draws, ord=p, axis=1).mean()
  corners = (np.abs(draws) == 1).sum()
  print(f'p = {p}: mean norm {norm:.1f} (uniform: 0.8), {corners} of {draws.size} coordinates are -1 or 1')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

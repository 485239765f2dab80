#!/usr/bin/env bash
# optax.inject_hyperparams makes the first Adam update of bfloat16 parameters NaN.
#
# Versions: optax 0.2.8, jax 0.10.2, Python 3.11.
# Behaviour: inject_hyperparams stores every numeric hyperparameter in the dtype of the first parameter. In
# bfloat16 b2 = 0.999 becomes 1.0, Adam divides its second moment by 1 - b2 = 0, and the first update is
# NaN. The momentum 0.9 becomes 0.8984.
# Expected: the wrapper exists to make the learning rate visible and changeable. Adam without it is fine
# with the same parameters, since its decay rates are Python floats. Nobody expects that wrapping an
# optimizer rounds its decay rates to 8 bits. The argument hyperparam_dtype avoids it.
# Output:
#   optax.adam: update [-0.000999451]
#   inject_hyperparams(optax.adam): b1 0.8984375, b2 1.0, update [nan]
#   with hyperparam_dtype=float32: b1 0.8999999761581421, b2 0.9990000128746033, update finite True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'END' | tee "$folder/output"
import jax.numpy as jnp
import optax

params = gradient = jnp.ones(1, jnp.bfloat16)
plain = optax.adam(1e-3)
print('optax.adam: update', plain.update(gradient, plain.init(params), params)[0])
for name, dtype in (('inject_hyperparams(optax.adam)', None), ('with hyperparam_dtype=float32', jnp.float32)):
  wrapped = optax.inject_hyperparams(optax.adam, hyperparam_dtype=dtype)(1e-3)
  state = wrapped.init(params)
  update = wrapped.update(gradient, state, params)[0]
  shown = f'update {update}' if dtype is None else f'update finite {bool(jnp.isfinite(update).all())}'
  print(f'{name}: b1 {float(state.hyperparams["b1"])}, b2 {float(state.hyperparams["b2"])}, {shown}')
END
diff <(sed -n 's/^#   //p' "$0") "$folder/output"

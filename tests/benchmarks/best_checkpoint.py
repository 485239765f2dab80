"""The network of a run that is over, for the commands beside this file."""

import sys
from typing import Any

import jax

from at_jax import checkpoints
from at_jax import command_line
from at_jax import errors
from at_jax import run as run_lib
from at_jax import settle


def load(config: str, workdir: str) -> tuple[run_lib.Run, dict[str, Any]]:
  """A run and the variables of its best checkpoint, ready for inference; exits if there are none."""
  try:
    asked = command_line.parse([f'--config={config}', f'--workdir={workdir}'])
    run = run_lib.build(asked.config)
  except errors.UserError as mistake:
    sys.exit(str(mistake))
  store = checkpoints.Checkpoints(asked.workdir / 'checkpoints', keep=1)
  saved, _ = store.best(jax.device_get(run_lib.init_state(run)))
  if saved is None:
    sys.exit(f'{asked.workdir} has no checkpoint that can be read')
  return run, settle.settler(run)(saved.state)

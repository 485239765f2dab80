"""On which fields the parameters of a run depend, and so whether one run may go on from another."""

from at_jax.config import fields, validation

# A change of these leaves the parameters after any step as they were, so a run may resume with it.
_FREE_FIELDS = ('evaluate.', 'validate.batch_size', 'validate.every_epochs', 'checkpoint.',
                'inference.', 'log_every_steps', 'dataset.data_dir')
# Which fields a run reads only under a condition on others; a field by its beginning.
_READ_IF = {
    'beta': lambda flat: validation.may_regularise(flat['loss']),
    'calibration.': lambda flat: any(flat[f'calibration.{name}']
                                     for name in ('radius', 'beta', 'temperature')),
    'consistency_temperature': lambda flat: flat['loss'] == 'consistency',
    'dataset.autoaugment_': lambda flat: flat['dataset.augment'] == 'autoaugment',
    'dummy.': lambda flat: flat['dummy.enabled'],
    'finetune.': lambda flat: flat['loss'] == 'finetune',
    'optimizer.decay_factor': lambda flat: flat['optimizer.name'] == 'sgd',
    'optimizer.entropy.': lambda flat: flat['optimizer.name'] == 'entropy_sgd',
    'optimizer.fair_': lambda flat: flat['optimizer.fair_decay'] > 0,
    'optimizer.learning_rate': lambda flat: flat['optimizer.name'] == 'sgd',
    'optimizer.momentum': lambda flat: flat['optimizer.name'] == 'sgd',
    'optimizer.outer.': lambda flat: flat['optimizer.name'] == 'entropy_sgd',
    'weights.': lambda flat: flat['weights.kind'] != 'none',
}


def conflicts(before: dict, now: dict) -> dict[str, tuple]:
  """The fields in which a run cannot go on from another: those that change the trajectory.

  Evaluation, inference, logging and checkpointing may change; of validation how often it comes and
  its batch, for scores must stay comparable. So may what neither run reads, as the teacher's fields
  where nothing is fine-tuned. `epochs` may grow where the schedule does not depend on it; for
  'cosine' it may not.

  Args:
    before: `config.flatten` of the configuration that the work directory was made with.
    now: `flatten` of the present one.

  Returns:
    `{field: (value before, value now)}`, empty if the run may go on.

  Example:
    >>> flat = config_lib.flatten(config_lib.default().to_dict())
    >>> conflicts(flat, flat | {'seed': 1, 'evaluate.batch_size': 2, 'finetune.tau': 3})
    {'seed': (0, 1)}

  Source: ours.
  """
  # What a field that is newer than the run would have been: its default leaves things as they were.
  default = fields.flatten(fields.default().to_dict())
  before = {name: value for name, value in default.items() if name in now} | before

  def read(name: str) -> bool:
    conditions = [reads for start, reads in _READ_IF.items() if name.startswith(start)]
    return not conditions or any(reads(flat) for reads in conditions for flat in (before, now))

  changed = {
      name: (before.get(name), now.get(name))
      for name in sorted(before.keys() | now.keys())
      if before.get(name) != now.get(name) and not name.startswith(_FREE_FIELDS) and read(name)
  }
  old, new = changed.get('epochs', (0, 0))
  if old and new and new > old and now.get('optimizer.schedule') == 'piecewise':
    changed.pop('epochs', None)
  return changed

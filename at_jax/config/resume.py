"""Which fields may change when a run resumes in its work directory."""

from at_jax.config import fields


def conflicts(before: dict, now: dict) -> dict[str, tuple]:
  """Finds the changed fields that prevent a run from resuming, because they affect its parameters.

  A field may change if it is `free` in `fields.FIELDS` (evaluation, inference, logging, checkpoints), or
  if neither run reads it. `epochs` may grow, except with schedules that depend on it: 'cosine' and 'cyclic'
  of the learning rate, and 'linear' of λ.

  Args:
    before: `fields.flatten` of the configuration that the work directory was made with.
    now: `fields.flatten` of the present configuration.

  Returns:
    `{field: (value before, value now)}`, empty if the run may resume.

  Example:
    >>> flat = fields.flatten(fields.default().to_dict())
    >>> conflicts(flat, flat | {'seed': 1, 'evaluate.batch_size': 2, 'finetune.tau': 3})
    {'seed': (0, 1)}
  """
  # A field that is newer than the work directory had its default.
  default = fields.flatten(fields.default().to_dict())
  before = {name: value for name, value in default.items() if name in now} | before

  def may_change(name: str) -> bool:
    field = fields.FIELDS.get(name)  # None for an argument of the model
    return field is not None and (
        field.free or field.when is not None and not any(map(field.when.holds, (before, now))))

  changed = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())
             if before.get(name) != now.get(name) and not may_change(name)}
  old, new = changed.get('epochs', (0, 0))
  by_epochs = now.get('optimizer.schedule') != 'piecewise' or (
      now.get('weights.kind') == 'geometry' and now.get('weights.schedule') == 'linear')
  if old and new and new > old and not by_epochs:
    changed.pop('epochs')
  return changed

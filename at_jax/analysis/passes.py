"""Robustness against the work of training: `python -m at_jax.analysis passes RUN... [--output=FOLDER]`.

Prints for each method how often training passes an image through the network, its time, and how robust the
model is. For three methods or more FOLDER/passes-1.png draws the one against the other (passes-2.png for a
second threat model). Methods whose loss or attack is imported are left out, because nothing says how many
passes they take.
"""

from collections.abc import Sequence
import pathlib
import sys
from typing import NamedTuple

import ml_collections

from at_jax import environment, errors
from at_jax.analysis import figures, folders, markdown, method_figures, report, table
from at_jax.config import fields, validation
from at_jax.methods import finetune, inner_attacks, nuat
from at_jax.training import epoch_plan, restore, setup

# Passes of an update, forward and backward.
_UPDATE = {'standard': 1, 'pgd_at': 1, 'consistency': 1, 'free_at': 1, 'trades': 2, 'mart': 2, 'nuat': 2,
           'fgsm_pgi': 2, 'gair_trades': 3, 'finetune': 2}
_FROM_CLEAN_LOGITS = (inner_attacks.kl, inner_attacks.kl_and_margin, nuat.nuclear)


class Passes(NamedTuple):
  """Passes of one example through the network.

  Attributes:
    forward: forward passes.
    backward: backward passes.
  """
  forward: int
  backward: int


def of_training(config: ml_collections.ConfigDict) -> Passes | None:
  """Counts how often training passes an image through the network.

  Validation, re-estimated BatchNorm statistics and the training of `config.finetune.source` do not count.

  Args:
    config: the configuration.

  Returns:
    The passes over all epochs; None if the loss or the attack is imported.

  Example:
    >>> from at_jax.config import fields
    >>> of_training(fields.default())  # 130 epochs of ten steps of PGD and an update
    Passes(forward=1430, backward=1430)
  """
  if config.loss not in _UPDATE or '.' in config.attack.kind:
    return None
  steps = [of_step(config, epoch_plan.name(config, epoch)) for epoch in range(config.epochs)]
  return Passes(*(setup.replays(config) * sum(each) for each in zip(*steps, strict=True)))


def of_step(config: ml_collections.ConfigDict, phase: str) -> Passes:
  """Counts the passes of an example in one step.

  Args:
    config: the configuration; its loss and attack are of this package.
    phase: the phase, as `epoch_plan.name` gives it.

  Returns:
    The `Passes`.

  Example:
    >>> from at_jax.config import fields
    >>> c = fields.default()
    >>> c.loss = 'trades'
    >>> of_step(c, 'trades')  # the attack compares with the clean logits
    Passes(forward=13, backward=12)
  """
  f, tunes = config.finetune, phase == 'finetune'
  update = _UPDATE[config.loss]
  if phase == 'standard' or tunes and not finetune.uses_clean(f.distance, f.clean_weight,
                                                              has_anchor=f.anchor_weight > 0):
    update = 1
  if phase.startswith('ducat'):  # two passes in place of the one of PGD-AT, or besides those of a loss
    update += 1 if config.loss in ('pgd_at', 'consistency') else 2
  if config.awp_gamma and (phase != 'standard' or config.loss == 'standard'):  # not before fine-tuning
    update *= 2
  steps, alone = (0, 0) if phase in ('standard', 'free_at') else _of_attack(config)
  alone += tunes * ((f.anchor_weight > 0) + (f.regulator == 'radius'))  # the teacher, and at the last point
  views = 2 if config.loss == 'consistency' else 1
  return Passes(views * (steps + alone + update), views * (steps + update))


def _of_attack(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Passes of the attack, forward and backward, and forward alone."""
  make = validation.attack_factory(fields.flatten(config.to_dict()))
  each = 2 if make is inner_attacks.kl_and_margin else 1
  return each * config.attack.num_steps, int(make in _FROM_CLEAN_LOGITS)


def _config(path: pathlib.Path) -> ml_collections.ConfigDict:
  config = restore.read_config(path)
  if config is None:
    raise errors.UserError('RUN', str(path), 'there is no config.json in it: add that of the run')
  return config


def _rows(found: Sequence[folders.Folder], compared: table.Table, passes: dict[str, Passes]
          ) -> list[list[str]]:
  seconds, against = report.training_seconds(found), passes.get(compared.against)
  rows = []
  for row in compared.rows:
    each = passes.get(row.method)
    if each:
      rows.append([f'`{row.method}`', str(len(row.runs)), str(each.forward), str(each.backward),
                   f'{each.forward / against.forward:.2f}' if against else '',
                   f'{seconds[row.method]:.0f}' if row.method in seconds else '',
                   *(markdown.percent(*row.values[column]) for column in ('clean', 'worst case')),
                   table.audits(row), table.comparison(row.tests)])
  return rows


def main(arguments: list[str] | None = None) -> int:
  """Prints the tables, and draws the figure if there is a folder for it.

  Args:
    arguments: the command line without `python -m at_jax.analysis passes`; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  parser = environment.parser('python -m at_jax.analysis passes', __doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--against', metavar='METHOD',
                      help=f'the reference method; default {table.REFERENCE}, or else the first method')
  parser.add_argument('--output', metavar='FOLDER', help='a folder for the figure, which is made')
  asked = parser.parse_args(arguments)
  try:
    found = [folder for folder in folders.read(asked.runs) if folder.run]
    if not found:
      raise errors.UserError('RUN', ' '.join(asked.runs), 'none of them is evaluated: use --mode=evaluate')
    methods = folders.by_method(found)
    against = table.reference(methods, asked.against)
    counted = {method: of_training(_config(seeds[0].path)) for method, seeds in methods.items()}
    passes = {method: each for method, each in counted.items() if each}
    texts = []
    for i, (title, compared) in enumerate(report.tables(found, against).items(), 1):
      head = ['method', 'seeds', 'forward', 'backward', f'of {compared.against}', 'seconds', 'clean',
              'worst case', 'audit', f'against {compared.against}']
      texts.append(f'{title}:\n\n{markdown.table(head, _rows(found, compared, passes))}')
      amounts = {method: each.forward for method, each in passes.items()}
      if asked.output and (drawn := method_figures.cost(f'passes-{i}', title, compared, amounts,
                                                        method_figures.PASSES, named=compared.against)):
        texts.append(f'{figures.write(drawn, asked.output)}: {drawn.caption}')
  except errors.UserError as error:
    environment.log(f'at_jax: {error}', sys.stderr)
    return 2
  print(environment.printable('\n\n'.join(texts)))
  return 0

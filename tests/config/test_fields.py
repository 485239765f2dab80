"""The table of fields: defaults, meanings, references between fields, and a loader of functions."""

import re

import ml_collections
import pytest

from at_jax.config import fields, validation


def test_every_field_has_a_meaning_and_a_row():
  rows = [line for line in fields.table().splitlines() if line.startswith('| `')]
  assert len(rows) == len(fields.FIELDS)
  for row, (name, field) in zip(rows, fields.FIELDS.items(), strict=True):
    assert row.startswith(f'| `{name}` | ') and field.meaning in row and row.count(' | ') == 5, row
    assert field.meaning.endswith('.') and len(field.meaning.split()) > 2, name


def test_default_has_exactly_the_fields_and_is_valid():
  config = fields.default()
  # Options of an optimizer of one's own are fields of the user.
  assert fields.flatten(config.to_dict()).keys() == fields.FIELDS.keys() - {'optimizer.options'}
  validation.check(config)


def test_the_evaluation_follows_the_attack_one_way():
  config = fields.default()
  config.attack.epsilon_255 = 4.
  assert config.evaluate.epsilon_255 == 4
  config.evaluate.epsilon_255 = 2.
  assert config.attack.epsilon_255 == 4


def test_a_field_keeps_its_type():
  config = fields.default()
  with pytest.raises(TypeError):
    config.epochs = 'many'
  assert isinstance(config.optimizer.entropy, ml_collections.ConfigDict)


def test_every_condition_can_hold_and_fail():
  flat = fields.flatten(fields.default().to_dict()) | {'dataset.validation_size': 0}
  on = flat | {'loss': 'finetune', 'dummy.enabled': True, 'weights.kind': 'geometry',
               'weights.schedule': 'linear', 'optimizer.name': 'entropy_sgd', 'calibration.beta': True,
               'calibration.radius': True, 'calibration.temperature': True, 'optimizer.fair_decay': .5,
               'dataset.augment': 'autoaugment', 'dataset.validation_size': 9, 'inference.kind': 'bias',
               'finetune.regulator': 'radius', 'finetune.batch_norm': 'dual', 'finetune.source': 'run',
               'evaluate.attacks': ['autoattack_fast']}
  others = [flat | {'loss': 'consistency', 'weights.kind': 'margin', 'optimizer.name': 'mine.adam'},
            flat | {'loss': 'standard', 'weights.kind': 'class_wise', 'optimizer.schedule': 'cosine',
                    'dataset.augment': 'resized_crop'},
            on | {'finetune.regulator': 'boundary', 'finetune.start_epoch': 0},
            flat | {'loss': 'free_at'}, flat | {'loss': 'fgsm_pgi'}]
  conditions = {field.when for field in fields.FIELDS.values() if field.when} - {fields.ALWAYS}
  for condition in conditions:
    found = {condition.holds(each) for each in (flat, on, *others)}
    assert found == {True, False}, condition.text


def test_no_condition_is_on_the_field_itself():
  for name, field in fields.FIELDS.items():
    assert field.when is None or not re.search(rf'`{name}\b(?!_)', field.when.text), name

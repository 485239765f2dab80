"""The hooks between epochs: which act when, and what they leave in the end of an epoch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from at_jax.config import fields
from at_jax.datasets import pipeline
from at_jax.models import deployed as deployed_lib
from at_jax.training import epoch_hooks, setup
from at_jax.training import step as step_lib
from tests.fixtures import finetune_runs


def names(hooks):
  return [getattr(hook, 'func', hook).__name__ for hook in hooks]


def test_hooks_of_a_finetuning_run():
  run = setup.build(finetune_runs.config_of(epochs=4, start_epoch=2))
  run.config.validate.every_epochs = 3
  starts = [names(epoch_hooks.at_start(run, epoch, None)) for epoch in range(4)]
  assert starts == [[], [], ['begin_finetuning'], []]
  ends = [names(epoch_hooks.at_end(run, epoch, None)) for epoch in range(4)]
  # Fine-tuning is validated every epoch, whatever `validate.every_epochs` is.
  assert ends == [[], [], ['validate', 'regulate'], ['validate', 'regulate']]


def test_hooks_of_a_run_with_a_fair_average():
  config = finetune_runs.config_of().copy_and_resolve_references()
  config.loss, config.epochs = 'pgd_at', 4
  config.optimizer.update(fair_decay=.5, fair_start_epoch=1)
  config.validate.every_epochs = 3
  run = setup.build(config)
  assert not any(epoch_hooks.at_start(run, epoch, None) for epoch in range(4))
  ends = [names(epoch_hooks.at_end(run, epoch, None)) for epoch in range(4)]
  # The average comes first, because it is what is validated. The last epoch is always validated.
  assert ends == [[], ['average_if_fair'], ['average_if_fair', 'validate'], ['average_if_fair', 'validate']]


@pytest.mark.parametrize('epoch, score', [(0, None), (1, .5)])
def test_no_score_before_the_method_has_started(epoch, score, monkeypatch):
  found = {'clean': .75, 'worst_case': .5, 'worst_class': .25,
           'by_class': {'worst_case': [.25, .75, None]}}  # no example of the last class
  monkeypatch.setattr(epoch_hooks.model_selection, 'report',
                      lambda run, variables, observe: types.SimpleNamespace(accuracies=lambda: found))
  run = types.SimpleNamespace(config=finetune_runs.config_of(),  # one epoch of clean training
                              dataset=types.SimpleNamespace(class_names=('crane', 'crane', '2')))
  end = epoch_hooks.validate(run, epoch_hooks.EpochEnd('state', {'other': 1}), epoch,
                             eval_variables=lambda state: {'params': state})
  assert end.score == score and end.state == 'state'
  assert end.numbers == {'other': 1, 'validation_clean': .75, 'validation_robust': .5,
                         'validation_worst_class': .25,
                         'validation_robust_by_class': {'0_crane': .25, '1_crane': .75, '2': None}}
  assert end.save and end.info == {'validation_robust': .5}
  assert end.note == 'validation clean 0.750, robust 0.500, worst class 0.250'


def test_a_fair_average_alone_saves_no_checkpoint(monkeypatch):
  average = types.SimpleNamespace(count=2)
  monkeypatch.setattr(epoch_hooks.model_selection, 'average_if_fair', lambda *_: (average, .25))
  end = epoch_hooks.EpochEnd(step_lib.TrainState(*[None] * len(step_lib.TrainState._fields)))
  end = epoch_hooks.average_if_fair(None, end, 1, eval_variables=None)
  assert not end.save and end.state.average is average
  assert end.numbers == {'own_worst_class': .25, 'averaged': 2}


def test_single_step_attacks_are_watched():
  config = finetune_runs.config_of().copy_and_resolve_references()
  config.attack.kind = 'n_fgsm'
  run = setup.build(config)
  assert names(epoch_hooks.at_end(run, 1, None)) == ['validate', 'watch_overfitting', 'regulate']


def test_a_model_whose_radius_still_grows_is_not_watched():
  config = finetune_runs.config_of().copy_and_resolve_references()
  config.attack.kind, config.attack.ramp_epochs, config.epochs = 'n_fgsm', (0, 3), 4
  run = setup.build(config)
  watched = ['watch_overfitting' in names(epoch_hooks.at_end(run, epoch, None)) for epoch in (1, 2)]
  assert watched == [False, True]


@pytest.mark.parametrize('bend, single, robust', [(.9, 1., 0.), (0., 1., 1.)])
def test_overfitting_is_one_line_and_no_best_checkpoint(bend, single, robust, capsys):
  # The margin is | |x − ½| − .9 ε | − .05 ε, or constant. It is negative in a narrow valley only, into which
  # PGD slides with short steps, and over which one step of 1.25 ε leads from 90 % of the points to the edge,
  # and from the others back past the middle.
  epsilon = .1

  def logits(variables, x):
    distance = jnp.abs(x.reshape(len(x), -1) - 127 / 255)
    margin = jnp.abs(distance - bend * epsilon) - .05 * epsilon if bend else 1 + 0 * distance
    return jnp.concatenate([margin + variables['params'], jnp.zeros_like(margin)], axis=1)

  c = fields.default()
  c.attack.update(kind='fgsm_rs', num_steps=1, epsilon_255=255 * epsilon, step_size_255=5.1 * epsilon)
  c.validate.update(num_steps=60, batch_size=40)
  split = pipeline.Split(np.full((40, 1, 1, 1), 127, np.uint8), np.zeros(40, np.int32))
  run = types.SimpleNamespace(
      config=c, keys={'evaluate': jax.random.key(0)},
      dataset=types.SimpleNamespace(validation=split, class_names=('0', '1')),
      network=deployed_lib.Network(None, logits, logits, None, lambda z: z))
  end = epoch_hooks.validate(run, epoch_hooks.EpochEnd('state'), 7,
                             eval_variables=lambda state: {'params': jnp.float32(0)})
  end = epoch_hooks.watch_overfitting(run, end, 7)
  found = end.numbers['validation_single_step'], end.numbers['validation_robust']
  assert found == pytest.approx((single, robust), abs=.05) and end.save
  assert (end.score is None) == (single != robust)
  err = capsys.readouterr().err
  assert err.count('\n') == (single != robust)
  assert 'epoch 7: catastrophic overfitting: ' in err or single == robust

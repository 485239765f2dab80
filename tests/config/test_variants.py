"""Every file in configs/: its header, its variants, its traced steps, and a run of two steps."""

import jax
import numpy as np
import pytest

from at_jax import errors, main
from at_jax.config import command_line, validation
from at_jax.training import epoch_plan, setup, sharding
from tests.fixtures.command_errors import ROOT

CONFIGS = sorted(ROOT.glob('configs/*.py'))
# The quick suite traces the steps of every config. Whole runs with dummy classes, EntropySGD and fine-tuning
# are in test_readme, test_entropy_run and test_finetune_run.


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_steps_of_every_config_keep_the_state_s_shapes(path):
  c = command_line.parse([f'--config={path}:smoke']).config
  run = setup.build(c)

  def step(epoch):
    take_steps = sharding.train_steps(epoch_plan.recipe(run, epoch_plan.name(c, epoch)))
    state, (images, labels) = sharding.replicate((setup.init_state(run), tuple(run.dataset.train)))
    after, metrics = take_steps(state, images, labels, np.arange(c.batch_size)[None], run.keys['train'],
                                epoch_plan.epoch_values(c, epoch))
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    variables = jax.tree.map(lambda leaf: leaf[0], variables)
    return state, after, metrics, run.network.deployed(variables, run.dataset.test.images[:2] / 255)

  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  # One epoch of each phase: others have the same program.
  phases = {(epoch_plan.name(c, epoch), jax.tree.structure(epoch_plan.epoch_values(c, epoch))): epoch
            for epoch in range(c.epochs)}
  for epoch in phases.values():
    state, after, metrics, logits = jax.eval_shape(lambda epoch=epoch: step(epoch))
    assert shapes(after) == shapes(state)
    assert metrics.loss.shape == metrics.finite.shape == (1,)
    assert (logits.shape, logits.dtype) == ((2, 10), np.float32)


@pytest.mark.long
@pytest.mark.oldest
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_two_batches(path, tmp_path, capsys):
  code = main.main([f'--config={path}:smoke', f'--workdir={tmp_path}'])
  assert code == 0, capsys.readouterr().err
  steps = [line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
           if '"loss"' in line]
  assert len(steps) == 2 * setup.replays(command_line.parse([f'--config={path}:smoke']).config)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_command_source_and_results(path):
  text = path.read_text()
  assert f'--config=configs/{path.name}' in text
  assert 'Reference:' in text and 'Measured' in text


@pytest.mark.parametrize('variant', ['l2', 'l2-small', 'l2-mnist'])
def test_entropy_sgd_has_the_l2_attack_of_pgd_at(variant):
  one, other = (command_line.parse([f'--config={ROOT}/configs/{name}_cifar10.py:{variant}']).config
                for name in ('pgd_at', 'entropy_sgd'))
  assert one.attack == other.attack and one.evaluate.to_dict() == other.evaluate.to_dict()
  assert one.attack.norm == one.evaluate.norm == 'l2'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_evaluation_has_the_adaptive_attacks(path):
  attacks = command_line.parse([f'--config={path}']).config.evaluate.attacks
  # The quickstart has a minute and a half: its attack on the margin is a short one.
  wanted = {'margin20x2'} if path.stem == 'quickstart' else {'margin100x5', 'scales_pgd20', 'dummies_pgd100'}
  assert wanted <= set(attacks)


@pytest.mark.parametrize('variant, remedy', [
    ('third-third', 'name each variant once'), ('third-', 'name each variant once'),
    ('mnist-cifar100', 'a run has one data set')])
def test_repeated_empty_and_contradictory_variants_are_refused(variant, remedy):
  with pytest.raises(errors.UserError, match=f"^--config = ':{variant}': {remedy}"):
    command_line.parse([f'--config={ROOT}/configs/at_jax_cifar10.py:{variant}'])


def test_mnist_in_l2_has_an_l2_radius():
  c = command_line.parse([f'--config={ROOT}/configs/entropy_sgd_cifar10.py:l2-mnist']).config
  # 1.5 is the usual radius for MNIST in L2, as in the paper of DDN; .3 is a radius in L∞.
  assert (c.attack.norm, c.attack.epsilon_255 / 255) == ('l2', 1.5)


# Means of the training pixels of both data sets, /255, computed from the whole sets.
@pytest.mark.parametrize('variant, mean', [('small', (.49140, .48216, .44653)),
                                           ('cifar100-small', (.50708, .48655, .44092))])
def test_our_recipe_subtracts_the_mean_of_its_data(variant, mean):
  c = command_line.parse([f'--config={ROOT}/configs/at_jax_cifar10.py:{variant}']).config
  np.testing.assert_allclose(c.model.normalize[0], mean, atol=1e-4)


@pytest.mark.parametrize('size', ['', 'small', 'mnist', 'smoke', 'mnist-small'])
@pytest.mark.parametrize('name, own', [('fgsm_rs', ''), ('n_fgsm', ''), ('nuat', ''), ('free_at', ''),
                                       ('fgsm_pgi', ''), ('at_jax', 'third')])
def test_one_step_stays_one_step_without_a_warning(name, own, size):
  variant = ':' + '-'.join(filter(None, (own, size)))
  c = command_line.parse([f'--config={ROOT}/configs/{name}_cifar10.py{variant.rstrip(":")}']).config
  lines = []
  validation.check(c, lines.append)
  assert c.attack.num_steps == 1 and not lines

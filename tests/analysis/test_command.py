"""The command `python -m at_jax.analysis`: it finds an analysis by its name."""

import pathlib

import pytest

from at_jax.analysis import __main__ as command

RESULTS = pathlib.Path(__file__).parents[2] / 'results'


def test_analysis_gets_the_other_arguments(capsys):
  assert command.main(['table', str(RESULTS / 'small_cifar10')]) == 0
  assert '| method |' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [[], ['--help']])
def test_help_names_every_analysis(arguments, capsys):
  assert command.main(arguments) == 0
  out = capsys.readouterr().out
  assert all(f'  {name} ' in out for name in command._ANALYSES)


@pytest.mark.parametrize('arguments, wrong', [
    (['hard_examples', 'X', '--checkpoints=al'], "'al' (choose from"), (['table', 'X', 'Y'], ': Y: '),
    (['radii', 'X'], '--output'), (['smoothness', 'X', '--n=few'], "'few'"),
    (['table', 'X', '--writ=page.md'], '--writ=page.md')])  # an abbreviation
def test_wrong_arguments_are_one_line(arguments, wrong, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main(arguments)
  line, = capsys.readouterr().err.splitlines()
  assert stopped.value.code == 2 and line.startswith('at_jax: ') and wrong in line
  assert f'`python -m at_jax.analysis {arguments[0]} --help` lists the arguments' in line


def test_unknown_analysis_is_one_line(capsys):
  assert command.main(['tabel']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("at_jax: NAME = 'tabel': did you mean 'table'?")

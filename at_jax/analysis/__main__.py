"""The command `python -m at_jax.analysis NAME …`: each analysis is a module with a function `main`."""

from collections.abc import Sequence
import importlib
import sys

from at_jax import environment, errors, xla_flags

_ANALYSES = {'classwise': 'robustness of each class, and what it is confused with',
             'hard_examples': 'examples on which all runs fail, and whether runs fail on the same ones',
             'passes': 'robustness against the passes through the network that training takes',
             'radii': 'distance of each example to the decision boundary, by FMN',
             'report': 'one page about runs: verdict, table, warnings, figures',
             'smoothness': 'how smooth the adversarial loss is in the weights and in the input',
             'table': 'accuracies of several runs, with paired tests',
             'without_class': 'what changes for the other classes if one is left out of training'}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one analysis.

  Args:
    argv: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  name, *arguments = (sys.argv[1:] if argv is None else argv) or ['--help']
  if name in ('--help', '-h'):
    print('usage: python -m at_jax.analysis NAME ..., and NAME --help for its arguments')
    print('\n'.join(f'  {each:15}{text}' for each, text in _ANALYSES.items()))
    return 0
  if name not in _ANALYSES:
    environment.log(f'at_jax: {errors.UserError("NAME", name, errors.nearest(name, _ANALYSES))}')
    return 2
  xla_flags.tune()  # before jax is imported
  return importlib.import_module(f'at_jax.analysis.{name}').main(arguments)


if __name__ == '__main__':
  sys.exit(main())

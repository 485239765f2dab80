"""What imports what: attacks need jax and numpy alone, and imports only point down."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'at_jax'
# From the bottom up; a module may import those of its own row and of the rows above it here.
LAYERS = (
    {'errors', 'xla_flags', 'devices'},
    {'attacks'},
    {'methods', 'datasets'},
    {'models'},
    {'evaluation'},
    {'config'},
    {'training'},
    {'analysis'},
    {'main'},
)
HEAVY = ('flax', 'optax', 'absl', 'orbax', 'ml_collections', 'tensorflow', 'tensorflow_datasets',
         'chex', 'sklearn')


@pytest.mark.oldest
def test_attacks_load_neither_flax_nor_optax_nor_the_rest():
  script = ('import sys, at_jax.attacks; '
            f'print([m for m in {HEAVY!r} if m in sys.modules])')
  found = subprocess.run([sys.executable, '-c', script], check=True, text=True,
                         stdout=subprocess.PIPE, cwd=PACKAGE.parent).stdout
  assert found.strip() == '[]'


def test_training_does_not_import_tensorflow():
  script = "import sys, at_jax.training.loop; print('tensorflow' in sys.modules)"
  found = subprocess.run([sys.executable, '-c', script], check=True, text=True,
                         stdout=subprocess.PIPE, cwd=PACKAGE.parent).stdout
  assert found.strip() == 'False'


def imported(path):
  """The modules of at_jax that a file imports, by their first name."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith('at_jax'):
      below = node.module.split('.')[1:2]
      yield from below or [alias.name for alias in node.names]


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')),
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
  own = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  if own == '__init__':
    return
  layer = next(i for i, names in enumerate(LAYERS) if own in names)
  allowed = set().union(*LAYERS[:layer + 1])
  if own == 'attacks':
    allowed = {'attacks'}
  assert set(imported(path)) <= allowed

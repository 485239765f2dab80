"""The layout of the package: few entries, imports that only point down, no cycles, light attacks."""

import ast
import functools
import graphlib
import importlib
import pathlib
import subprocess
import sys

import pytest

from tests import conftest

PACKAGE = pathlib.Path(__file__).parent.parent / 'at_jax'
# From the bottom up. A module may import from its own layer and from the layers before it.
LAYERS = (
    {'errors', 'environment', 'xla_flags', 'devices'},
    {'attacks'},
    {'methods', 'datasets'},
    {'models'},
    {'evaluation'},
    {'config'},
    {'training'},
    {'analysis'},
    {'main', 'plan'},
)
COMMANDS = {'main.py', 'plan.py'}
HEAVY = ('flax', 'optax', 'absl', 'orbax', 'ml_collections', 'tensorflow', 'tensorflow_datasets',
         'chex', 'sklearn')
FILES = sorted(PACKAGE.rglob('*.py'))


def loaded(statement, names):
  """Which of the modules a new process has loaded after a statement."""
  script = f'import sys; {statement}; print(*(m for m in {names!r} if m in sys.modules))'
  return subprocess.run([sys.executable, '-c', script], check=True, text=True, stdout=subprocess.PIPE,
                        cwd=PACKAGE.parent).stdout.split()


def module_name(path):
  parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def imported(path):
  """The modules of at_jax that a file imports, in functions too."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names} & MODULES.keys()
    elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
      names = {alias.name for alias in node.names}
      submodules = {f'{node.module}.{name}' for name in names} & MODULES.keys()
      found |= submodules | ({node.module} if len(submodules) < len(names) else set())
  return found - {'at_jax', module_name(path)}


def entry(module):
  """The file or folder of at_jax that a module is in."""
  return module.split('.')[1]


@pytest.mark.oldest
@pytest.mark.parametrize('statement', ['import at_jax.attacks', 'import at_jax; at_jax.attacks.pgd'])
def test_attacks_load_only_jax_and_numpy(statement):
  assert loaded(statement, (*HEAVY, 'jax')) == ['jax']


def test_training_loads_orbax_late_and_no_other_framework():
  # The command reads its command line before it loads what it trains with.
  parse = 'import at_jax.config.command_line, at_jax.training; print("orbax" in sys.modules)'
  others = ('tensorflow', 'torch', 'tensorboardX')  # tensorboardX imports torch where it is installed
  found = loaded(f'{parse}; import at_jax.training.loop', (*others, 'orbax', 'flax'))
  assert found == ['False', 'orbax', 'flax']


def test_public_names_of_subpackages():
  import at_jax
  for name in at_jax._SUBPACKAGES:
    package = getattr(at_jax, name)
    for public in getattr(package, '__all__', ()):
      assert getattr(package, public) is not None
  with pytest.raises(AttributeError, match="no attribute 'pgd'"):
    at_jax.pgd  # noqa: B018


def test_torch_model_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # as if it was not installed
  monkeypatch.delitem(sys.modules, 'at_jax.models.torch_model', raising=False)
  with pytest.raises(ImportError, match=r"needs PyTorch: pip install 'at_jax\[torch\]'"):
    importlib.import_module('at_jax.models.torch_model')


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
  module = module_name(path)
  if module == 'at_jax':
    return
  layer = next(i for i, names in enumerate(LAYERS) if entry(module) in names)
  allowed = {'attacks'} if entry(module) == 'attacks' else set().union(*LAYERS[:layer + 1])
  assert {entry(each) for each in imported(path)} <= allowed


def test_no_cycle_between_modules():
  order = graphlib.TopologicalSorter({module: imported(path) for module, path in MODULES.items()})
  assert len(list(order.static_order())) >= len(MODULES) - 1  # raises CycleError on a cycle


def test_at_most_eight_levels_of_imports():
  above = {}
  for module, path in MODULES.items():
    if module != 'at_jax':
      below = {entry(each) for each in imported(path)} - {entry(module)}
      above[entry(module)] = above.get(entry(module), set()) | below
  levels = {}
  for name in graphlib.TopologicalSorter(above).static_order():
    levels[name] = 1 + max((levels[each] for each in above.get(name, ())), default=0)
  assert max(levels.values()) <= 8, levels


def test_at_most_twelve_entries_at_the_top():
  entries = {path.name for path in PACKAGE.iterdir()
             if path.suffix == '.py' or (path / '__init__.py').exists()}
  assert len(entries - COMMANDS - {'__init__.py'}) <= 12, entries


def test_lightly_compiled_files_exist():
  assert not [name for name in conftest._LIGHTLY_COMPILED
              if not list(pathlib.Path(name).parent.glob(f'{pathlib.Path(name).name}*'))]

"""Models as arguments of compiled functions, which have to notice when the weights have changed.

jit compares by `==` what it is not given as an array, and an object that holds its weights is equal to
itself whatever they have become: a program compiled for it would go on with those it had then.
"""

from collections.abc import Callable, Iterable, Iterator
import dis
import functools
import itertools
import types
from typing import Any
from typing import NamedTuple
import zlib

import jax
import numpy as np

Array = jax.Array
_DEPTH = 8  # how many objects deep arrays are looked for


def as_partial(logits_fn: Callable[..., Array]) -> jax.tree_util.Partial:
  """Wraps a model so that it may be an argument of a compiled function.

  Where the callable is a pytree (modules of Equinox and flax.nnx), a method of one or a `partial`, its
  arrays are split off and traced: other weights then compile nothing anew. Any other is compiled for
  the arrays that are found in it, among its attributes or in what a function refers to, and again
  when they are others: by closure, default arguments and global names, also of functions inside of it
  and of those beside it; in an object that is no function, those of the attributes it reads. What a
  NumPy array holds is compared by a checksum, at every call.

  Not looked into are functions of other modules, modules, classes and what their methods refer to,
  `__slots__`, and what is more than eight objects deep. Where weights are kept there and change between
  two calls, pass `jax.tree_util.Partial(f, weights)`.

  Args:
    logits_fn: any callable.

  Returns:
    It, if it is a `jax.tree_util.Partial` around a function already, else one around it.

  Raises:
    ValueError: if it is no function, or what is no array in a pytree of it cannot be compared with
      that of another call.

  Example:
    >>> as_partial(jax.numpy.sin)(0.)
    Array(0., dtype=float32, weak_type=True)
    >>> as_partial(functools.partial(jax.numpy.add, jax.numpy.ones(2))).args
    ([Array([1., 1.], dtype=float32)],)

  Source: ours.
  """
  if not callable(logits_fn):
    raise ValueError(f'logits_fn is a {type(logits_fn).__name__}: use a function from inputs to logits')
  if isinstance(logits_fn, jax.tree_util.Partial):
    inner = as_partial(logits_fn.func)
    if inner.func is logits_fn.func:
      return logits_fn
    return jax.tree_util.Partial(_call, inner, *logits_fn.args, **logits_fn.keywords)
  if isinstance(logits_fn, functools.partial):
    return _split((as_partial(logits_fn.func), logits_fn.args, logits_fn.keywords), _call_curried)
  owner, method = logits_fn, _call
  if isinstance(logits_fn, types.MethodType):
    owner, method = logits_fn.__self__, logits_fn.__func__
  if any(map(_is_array, jax.tree.leaves(owner))):
    return _split(owner, method)
  if _is_plain(logits_fn):
    return jax.tree_util.Partial(logits_fn)
  return jax.tree_util.Partial(_Kept(owner, method))


class _Apart(NamedTuple):
  """A function of a pytree, and the pytree without its arrays, which come as the first argument."""
  apply: Callable[..., Array]
  treedef: Any
  rest: tuple  # (type, leaf), None in the place of an array; with its type, for 1 == 1.0 == True

  def __call__(self, arrays: list[Array], *args, **kwargs) -> Array:
    left = iter(arrays)
    leaves = [next(left) if told is None else told[1] for told in self.rest]
    leaves = [leaf.value if isinstance(leaf, _Kept) else leaf for leaf in leaves]
    return self.apply(jax.tree.unflatten(self.treedef, leaves), *args, **kwargs)


def _split(tree: Any, apply: Callable[..., Array]) -> jax.tree_util.Partial:
  leaves, treedef = jax.tree.flatten(tree)
  if not _hashes(treedef):
    raise ValueError(
        f'logits_fn has fields in {type(tree).__name__} that cannot be compared with those of another '
        'call: pass jax.tree_util.Partial(f, arrays), f a function of the arrays and x')
  keep = lambda leaf: leaf if _is_plain(leaf) else _Kept(leaf)
  rest = tuple(None if _is_array(leaf) else (type(leaf), keep(leaf)) for leaf in leaves)
  return jax.tree_util.Partial(_Apart(apply, treedef, rest), list(filter(_is_array, leaves)))


class _Kept:
  """A callable that is the same as another if it is that object and holds the same arrays."""

  def __init__(self, value: Any, method: Callable[..., Array] | None = None):
    self.value, self.method = value, method or _call
    self._arrays = tuple(_hidden(value))  # kept alive, for an identity means nothing after its end
    # What NumPy holds may be written to.
    contents = (zlib.crc32(a.tobytes()) for a in self._arrays if isinstance(a, np.ndarray))
    self._known = id(value), self.method, tuple(map(id, self._arrays)), tuple(contents)

  def __call__(self, *args, **kwargs) -> Array:
    return self.method(self.value, *args, **kwargs)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, _Kept) and self._known == other._known

  def __hash__(self) -> int:
    return hash(self._known)


def _call(model, *args, **kwargs):
  return model(*args, **kwargs)


def _call_curried(parts, *args, **kwargs):
  function, first, keywords = parts
  return function(*first, *args, **(keywords | kwargs))


def _hidden(value: Any) -> Iterator[Array]:
  """The arrays inside of what is no pytree, the nearest first.

  Level by level: an object that is met far down and again further up is looked into from there.
  """
  seen, level = {}, [(value, None)]
  for _ in range(_DEPTH):
    below = []
    for leaf, names in itertools.chain.from_iterable(itertools.starmap(_inside, level)):
      if (id(leaf), names) in seen or isinstance(leaf, (type, types.ModuleType)):
        continue
      seen[id(leaf), names] = leaf  # it too, for an identity means nothing after its end
      if _is_array(leaf):
        yield leaf
      else:
        below.append((leaf, names))
    level = below


def _inside(value: Any, names: tuple[str, ...] | None) -> Iterator[tuple[Any, tuple[str, ...] | None]]:
  """The leaves of what an object holds, of what is no function of x by these names only; None for all.

  A function that reads `trainer.params` is to be compiled anew for other parameters, and not whenever
  anything else of the trainer changes.
  """
  held = dict(getattr(value, '__dict__', ()))
  if isinstance(value, types.FunctionType):
    held = [*held.values(), *_mentioned(value)]
    names = _names(value.__code__)[1]
  elif isinstance(value, functools.partial):
    held = [value.func, value.args, value.keywords]
  elif names is not None and held:
    names = _reached(type(value), names)
    held = [held[name] for name in names if name in held]
  else:
    held = [getattr(value, '__self__', None), getattr(value, '__func__', None), *held.values()]
  return ((leaf, None if callable(leaf) or _is_array(leaf) else names) for leaf in _leaves(held))


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
  for value in values:
    try:
      yield from jax.tree.leaves(value)
    except (TypeError, ValueError):  # names that jax cannot sort
      yield from value.values() if isinstance(value, dict) else [value]


def _mentioned(function: types.FunctionType) -> Iterator[Any]:
  """What a function closes over, its defaults, and what its global names mean."""
  for cell in function.__closure__ or ():
    try:
      yield cell.cell_contents
    except ValueError:  # not assigned yet
      continue
  yield from function.__defaults__ or ()
  yield from (function.__kwdefaults__ or {}).values()
  for name in _names(function.__code__)[0]:
    other = function.__globals__.get(name)
    # Of functions only those beside it, or the search would go through whole libraries.
    if not isinstance(other, types.FunctionType) or other.__globals__ is function.__globals__:
      yield other


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The global names and the attributes that a function reads, those of functions inside of it too."""
  parts = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
  steps = list(dis.get_instructions(code))
  read = lambda *kinds: [step.argval for step in steps if step.opname in kinds]
  own = read('LOAD_GLOBAL', 'LOAD_NAME'), read('LOAD_ATTR', 'LOAD_METHOD')
  return tuple(tuple(dict.fromkeys(itertools.chain(mine, *theirs)))
               for mine, *theirs in zip(own, *parts, strict=True))


def _reached(kind: type, names: tuple[str, ...]) -> tuple[str, ...]:
  """These attributes, and those that the methods among them read."""
  found, left = dict.fromkeys(names), list(names)
  while left:
    method = getattr(kind, left.pop(), None)
    method = method.fget if isinstance(method, property) else method
    if isinstance(method, types.FunctionType):
      new = [name for name in _names(method.__code__)[1] if name not in found]
      found |= dict.fromkeys(new)
      left += new
  return tuple(found)


def _is_array(leaf: Any) -> bool:
  if isinstance(leaf, np.ndarray):
    return leaf.dtype.kind not in 'OSUMm'
  return isinstance(leaf, jax.Array)


def _is_plain(value: Any) -> bool:
  """Whether jit may compare it as it is."""
  return _hashes(value) and next(_hidden(value), None) is None


def _hashes(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True

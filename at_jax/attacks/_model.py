"""Models as arguments of compiled functions, which have to notice when the weights have changed.

jit compares by `==` what it is not given as an array, and an object that holds its weights is equal to
itself whatever they have become: a program compiled for it would go on with those it had then.
"""

from collections.abc import Callable, Iterable, Iterator
import dis
import functools
import inspect
import itertools
import types
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

from at_jax.attacks import _arguments

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
    self._arrays = tuple(_arrays_in(value))  # kept alive, for an identity means nothing after its end
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


def _arrays_in(value: Any) -> Iterator[Array]:
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
  return _hashes(value) and next(_arrays_in(value), None) is None


def _hashes(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def check_call(logits_fn: jax.tree_util.Partial, x: Array, **classes: Array) -> None:
  """Raises unless the model gives logits, and those of all classes named.

  The model is traced for it, once for all calls, and not compiled. Under a transformation, where
  classes cannot be looked at, nothing is done.

  Args:
    logits_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...].
    **classes: i32[B] each, by the names of the arguments.

  Raises:
    ValueError: as `check_answer` and `inputs.check_classes`.

  Example:
    >>> check_call(jax.tree_util.Partial(lambda x: x), jax.numpy.ones((1, 2)), y=jax.numpy.array([1]))

  Source: ours.
  """
  if not all(map(_arguments.is_known, (x, *classes.values()))):
    return
  answer = _answer.eval_shape(logits_fn, x)
  check_answer(answer, len(x))
  for name, numbers in classes.items():
    _arguments.check_classes(name, numbers, answer.shape[1])


def check_answer(answer: Any, num_examples: int) -> None:
  """Raises unless what a model gave are logits of several classes for each example.

  Args:
    answer: an array, or the shape and dtype of one.
    num_examples: that it was given.

  Raises:
    ValueError: for tuples, dictionaries and the like, and any shape but [B, C], C of at least 2.

  Example:
    >>> check_answer(jax.numpy.zeros((2, 10)), 2)

  Source: ours.
  """
  if not hasattr(answer, 'shape'):
    raise ValueError(f'logits_fn gives a {type(answer).__name__}: return the logits alone, '
                     'lambda x: model(x)[0] for example')
  shape = answer.shape
  if len(shape) == 2 and shape[0] == num_examples and shape[1] > 1:
    return
  cure = 'return one row per example, one column per class'
  if shape in ((num_examples,), (num_examples, 1)):
    cure = 'for one logit z of two classes return stack([0 * z, z], axis=-1) of shape [B, 2]'
  raise ValueError(f'logits_fn gives shape {tuple(shape)} for {num_examples} examples: {cure}')


def check_arguments(logits_fn: Callable[..., Any], x: Array, *, random: bool) -> None:
  """Raises unless a model can be called with inputs and nothing else, or with one example and a key.

  Args:
    logits_fn: the model; one whose signature cannot be read passes.
    x: f32[B, ...].
    random: whether it is one that draws from a key.

  Raises:
    ValueError: if it takes fewer arguments, or needs more.

  Example:
    >>> check_arguments(lambda x, key: x, jax.numpy.ones((1, 2)), random=True)

  Source: ours.
  """
  names = ('x', 'key') if random else ('x',)
  reason = _misfit(logits_fn, *names)
  if reason is None:
    return
  try:  # A decorator may pass on the signature of what it wraps, and give it what it needs.
    jax.eval_shape(logits_fn, *((x[:1], jax.random.key(0)) if random else (x,)))
  except TypeError:
    cure = ('a random model is given one example and a key' if random else
            'give what else it needs, lambda x: model(x, train=False) for example; one that draws from a '
            "key is for autoattack's version='rand'")
    raise ValueError(f'logits_fn cannot be called as ({", ".join(names)}), {reason}: {cure}') from None


def check_search(
    search_fn: jax.tree_util.Partial, x: Array, y: Array, num_classes: int) -> None:
  """Raises unless a model that is searched on has a logit for each class of the one that decides.

  Args:
    search_fn: from f32[B, ...] to logits f32[B, C].
    x: f32[B, ...].
    y: i32[B].
    num_classes: of the model that decides.

  Raises:
    ValueError: as `check_call`, and for fewer classes.

  Example:
    >>> model = jax.tree_util.Partial(lambda x: x)
    >>> check_search(model, jax.numpy.ones((1, 2)), jax.numpy.array([1]), 2)

  Source: ours.
  """
  check_call(search_fn, x, y=y)
  given = _answer.eval_shape(search_fn, x).shape[1]
  if given < num_classes:
    raise ValueError(f'search_fn gives {given} logits, logits_fn {num_classes}: use the same classes')


def check_function(name: str, function: Any, *arguments: str, like: str) -> None:
  """Raises unless this is a function that can be called with these.

  Args:
    name: of it.
    function: one whose signature cannot be read passes.
    *arguments: their names.
    like: one that could be given, for the message.

  Raises:
    ValueError: for what is no function, or one of other arguments.

  Example:
    >>> check_function('loss', lambda logits, y: y, 'logits', 'y', like='losses.dlr')

  Source: ours.
  """
  if not callable(function):
    raise ValueError(f'{name} = {function!r}: use a function, {like} for example')
  if reason := _misfit(function, *arguments):
    given = getattr(function, '__name__', repr(function))
    raise ValueError(f'{name} = {given} cannot be called as ({", ".join(arguments)}), {reason}: use one '
                     'that can, or give what it needs')


def _misfit(function: Callable[..., Any], *arguments: str) -> TypeError | None:
  """Why it cannot be called with these; None where it can, or its signature cannot be read."""
  try:
    signature = inspect.signature(function)
  except ValueError:  # a builtin
    return None
  try:
    signature.bind(*arguments)
  except TypeError as error:
    return error
  return None


_answer = jax.jit(lambda logits_fn, x: logits_fn(x))

"""Models as arguments of compiled functions: always with their present weights, and compiled once.

jit compares a function by identity, so it would keep the weights that an opaque callable had when it was
compiled, and would compile every new lambda again. Here a callable is traced to a jaxpr before each
attack. Its constants become arguments, and the compiled attack is shared by all callables whose jaxprs
are equal.
"""

from collections.abc import Callable
import functools
import inspect
import types
from typing import Any
import weakref

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from at_jax.attacks import _functions

Array = jax.Array
_CUSTOM_RULES = ('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy')
_ANSWER = jax.jit(lambda logits_fn, *args: logits_fn(*args))  # only its cached eval_shape is used
# Programs whose logits have a row per example. They are alive as long as an attack is compiled for them.
_ROWS_ARE_EXAMPLES = weakref.WeakSet()


def capture(logits_fn: Callable[..., Array], x: Any, key: Any = None,
            name: str = 'logits_fn') -> tuple[jax.tree_util.Partial, int]:
  """Traces a model at one input shape and makes its weights arguments.

  A `jax.tree_util.Partial` of a plain function is returned as it is: its arrays are arguments already.

  Args:
    logits_fn: any callable from inputs, or from inputs and a key, to logits.
    x: f32[B, ...] or its shape and dtype; the result is called with inputs of this shape.
    key: a PRNG key, or its shape and dtype, if the model takes one.
    name: argument name, for the error message.

  Returns:
    The model as a `jax.tree_util.Partial`, and its number of classes C.

  Raises:
    ValueError: if it cannot be called with these arguments, or does not return logits [B, C].
  """
  args, names = ((x,), ('x',)) if key is None else ((x, key), ('x', 'key'))
  try:
    model, answer = _as_partial(logits_fn, args)
  except Exception as error:
    remedy = ('bind its other arguments, lambda x: model(x, train=False) for example; what differs between '
              'examples can be a part of x that bounds hold fixed; a model that draws from a key is for '
              "autoattack's version='rand'")
    if key is not None:
      remedy = 'a random model is given one example and a key'
    if isinstance(error, TypeError):
      _functions.check_function(name, logits_fn, *names, like='lambda x: x @ weights', remedy=remedy)
    raise _functions.failure(name, logits_fn, args, error) from error
  _functions.check_answer(answer, x.shape[0], name)
  # Logits [C, B] can be detected only with another B: once for each program.
  if answer.shape[0] == answer.shape[1] and model.func not in _ROWS_ARE_EXAMPLES:
    _check_rows_are_examples(logits_fn, x, name)
    if isinstance(model.func, _Program):
      _ROWS_ARE_EXAMPLES.add(model.func)
  return model, answer.shape[1]


def _check_rows_are_examples(logits_fn: Callable[..., Array], x: Any, name: str) -> None:
  num_examples = x.shape[0] + 1
  try:
    other = _as_partial(logits_fn, (jax.ShapeDtypeStruct((num_examples, *x.shape[1:]), x.dtype),))[1]
  except Exception:  # the model accepts one batch size only, so nothing can be checked
    return
  if getattr(other, 'shape', None) == (x.shape[0], num_examples):
    _functions.check_answer(other, num_examples, name)


def _as_partial(logits_fn: Callable[..., Array], args: tuple) -> tuple[jax.tree_util.Partial, Any]:
  """The model with its weights as arguments, and the shape of its output; JAX caches that of a Partial."""
  if isinstance(logits_fn, jax.tree_util.Partial) and _is_plain(logits_fn.func):
    return logits_fn, _ANSWER.eval_shape(logits_fn, *args)
  return _trace(logits_fn, args)


def _trace(logits_fn: Callable[..., Array], args: tuple) -> tuple[jax.tree_util.Partial, Any]:
  """The traced model and the shape of its output."""
  tree, call = _open(logits_fn)
  leaves, treedef = jax.tree.flatten(tree)
  arrays = [leaf for leaf in leaves if _is_array(leaf)]

  def apply(arrays, *args):
    remaining = iter(arrays)  # a module is rebuilt inside the trace, where it may update its own state
    rebuilt = [next(remaining) if _is_array(leaf) else leaf for leaf in leaves]
    return call(jax.tree.unflatten(treedef, rebuilt), *args)

  closed, answer = jax.make_jaxpr(apply, return_shape=True)(arrays, *args)
  if _hides_constants(closed.jaxpr):
    closed = jax.make_jaxpr(_inline(closed))(*arrays, *args)
  # Copied, because what NumPy holds may be written to while the attack still runs.
  weights = [a if isinstance(a, jax.Array) else jnp.array(np.asarray(a)) for a in (*closed.consts, *arrays)]
  return jax.tree_util.Partial(_Program(closed.jaxpr), weights), answer


class _Program:
  """A jaxpr as a hashable function of its constants and inputs, equal to any other with the same key."""

  def __init__(self, jaxpr: core.Jaxpr):
    self.jaxpr, self._key = jaxpr, _key_of(jaxpr)
    self._hash = hash(self._key)

  def __call__(self, weights: list[Array], *args: Array) -> Array:
    count = len(self.jaxpr.constvars)
    closed = core.ClosedJaxpr(self.jaxpr, weights[:count])
    given = [jnp.asarray(a) for a in (*weights[count:], *args)]
    wanted = [v.aval.shape for v in self.jaxpr.invars]
    assert [a.shape for a in given] == wanted, f'a model traced for {wanted} is called with {given}'
    return core.jaxpr_as_fun(closed)(*given)[0]

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, _Program) and self._hash == other._hash and self._key == other._key

  def __hash__(self) -> int:
    return self._hash


class _Same:
  """An object that is equal only to itself, kept alive so that its identity is not used again."""

  def __init__(self, value: Any):
    self.value = value

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, _Same) and self.value is other.value

  def __hash__(self) -> int:
    return id(self.value)


def _key_of(jaxpr: core.Jaxpr, rules: bool = True) -> tuple:
  """All that decides what a jaxpr computes and, with `rules`, its gradient; not its constants' values."""
  numbers = {}

  def atoms(variables):
    return tuple((v.aval, np.asarray(v.val).tobytes() if isinstance(v, core.Literal)
                  else numbers.setdefault(v, len(numbers))) for v in variables)

  return (atoms(jaxpr.constvars), atoms(jaxpr.invars), *(
      (e.primitive, e.ctx, atoms(e.invars), _frozen(_with_rule(e, rules), rules), atoms(e.outvars))
      for e in jaxpr.eqns), atoms(jaxpr.outvars))


def _with_rule(eqn: core.JaxprEqn, rules: bool) -> dict[str, Any]:
  """Parameters of an equation, with its gradient in place of a custom derivative rule."""
  params = eqn.params  # a rule is a function that each trace creates again, so it cannot be compared
  if eqn.primitive.name not in _CUSTOM_RULES or params.get('symbolic_zeros'):
    return params
  comparable = {name: p for name, p in params.items() if isinstance(p, (core.ClosedJaxpr, int))}
  if not rules:  # attacks differentiate once, so the rules inside a rule are never applied
    return comparable
  n = params.get('num_consts', 0)  # the arrays that the function closes over have no gradient

  def pull(args, cotangents):
    return jax.vjp(functools.partial(_bind, eqn, *args[:n]), *args[n:])[1](cotangents)

  spec = lambda variables: [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]
  try:
    rule = jax.make_jaxpr(pull)(spec(eqn.invars), spec(eqn.outvars))
  except Exception:  # no gradient for this dtype or primitive: compared by identity
    return params
  return comparable | {'rule': _frozen(rule, rules=False)}


def _frozen(value: Any, rules: bool) -> Any:
  """A parameter of an equation as a hashable key; what cannot be compared is equal only to itself."""
  if isinstance(value, core.ClosedJaxpr):
    return _key_of(value.jaxpr, rules), _frozen(value.consts, rules)
  if isinstance(value, core.Jaxpr):
    return _key_of(value, rules)
  if isinstance(value, dict):
    return tuple((name, _frozen(value[name], rules)) for name in sorted(value, key=str))
  if isinstance(value, (tuple, list)):
    return type(value), *(_frozen(part, rules) for part in value)
  if hasattr(value, '__array__') and not isinstance(value, (jax.Array, type)):  # a NumPy array or a literal
    value = np.asarray(value)
    return value.shape, value.dtype.str, value.tobytes()
  if isinstance(value, (bool, int, float, complex)):
    return type(value), repr(value)  # because 1 == 1.0 == True and 0. == -0.
  alone = isinstance(value, jax.Array) or not _is_hashable(value)
  return _Same(value) if alone else (type(value), value)


def _hides_constants(jaxpr: core.Jaxpr) -> bool:
  """Whether an inner jit has constants, for example the arrays of a closure."""
  inner = [e.params['jaxpr'] for e in jaxpr.eqns if e.primitive.name == 'jit']
  return any(closed.consts or _hides_constants(closed.jaxpr) for closed in inner)


def _bind(eqn: core.JaxprEqn, *args: Array) -> list[Array]:
  """The outputs of one equation."""
  params = eqn.primitive.get_bind_params(eqn.params)
  functions, params = params if isinstance(params, tuple) else ((), params)  # jax < 0.8 gives both
  with eqn.ctx.manager:
    outputs = eqn.primitive.bind(*functions, *args, **params)
  return outputs if eqn.primitive.multiple_results else [outputs]


def _inline(closed: core.ClosedJaxpr) -> Callable[..., list[Array]]:
  """The same function without inner jits: traced again, it shows the constants that they hold."""
  jaxpr = closed.jaxpr

  def run(*args):
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    read = lambda v: jnp.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else values[v]
    for eqn in jaxpr.eqns:
      step = _inline(eqn.params['jaxpr']) if eqn.primitive.name == 'jit' else functools.partial(_bind, eqn)
      values |= zip(eqn.outvars, step(*map(read, eqn.invars)), strict=True)
    return list(map(read, jaxpr.outvars))

  return run


def _open(function: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
  """Splits a callable into a pytree and a function of the pytree and the call's arguments."""
  if isinstance(function, functools.partial):
    inner, call = _open(function.func)
    return ((inner, function.args, function.keywords),
            lambda parts, *args: call(parts[0], *parts[1], *args, **parts[2]))
  if isinstance(function, types.MethodType):
    return function.__self__, function.__func__
  return function, lambda function, *args, **keywords: function(*args, **keywords)


def _is_plain(value: Any, seen: tuple = ()) -> bool:
  """Whether a value, such as a function, refers to nothing that holds weights; modules are not searched."""
  if value is None or isinstance(value, (str, type, types.ModuleType, types.BuiltinFunctionType)):
    return True
  if isinstance(value, types.MethodType):
    return _is_plain(value.__func__, seen) and _is_plain(value.__self__, seen)
  function = inspect.unwrap(value) if callable(value) else value
  if not isinstance(function, types.FunctionType):
    # An object compared by value, as a linen module, unless it is bound to weights, which its == ignores.
    return (callable(value) and type(value).__hash__ not in (None, object.__hash__) and _is_hashable(value)
            and getattr(value, 'scope', None) is None and not any(map(_is_array, jax.tree.leaves(value))))
  try:
    scope = inspect.getclosurevars(function)
  except ValueError:  # a cell that is not assigned yet
    return False
  held = [*scope.nonlocals.values(), *(function.__defaults__ or ()),
          *(function.__kwdefaults__ or {}).values()]
  if (function.__module__ or '').partition('.')[0] not in _LIBRARIES:
    # `getclosurevars` does not look into the functions that this one defines.
    if any(isinstance(constant, types.CodeType) for constant in function.__code__.co_consts):
      return False
    held += scope.globals.values()
  seen = (*seen, function)
  return all(isinstance(v, bool) or any(v is s for s in seen) or _is_plain(v, seen) for v in held)


def _is_hashable(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) or isinstance(leaf, np.ndarray) and leaf.dtype.kind not in 'OSUMm'

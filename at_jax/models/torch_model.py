"""PyTorch models as functions from JAX inputs to logits, for every attack; needs PyTorch."""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import threading
from typing import Any, NamedTuple

import jax
from jax.experimental import buffer_callback
import jax.numpy as jnp
import numpy as np

from at_jax import errors

try:
  import torch
except ImportError as error:
  raise ImportError("at_jax.models.torch_model needs PyTorch: pip install 'at_jax[torch]'") from error

Array = jax.Array


class _Pass(NamedTuple):
  """A forward pass: its input, a leaf of the graph, and its logits."""
  x: torch.Tensor
  logits: torch.Tensor


class TorchModel:
  """A PyTorch model as a function from JAX inputs to logits, which every attack takes.

  PyTorch computes on the host, in the dtype and on the device of the model, whatever JAX's backend is. It
  uses the weights that the model has at that moment. Gradients are taken with respect to the input only, so
  neither `requires_grad` nor `grad` of a weight changes. A gradient uses the graph of its forward pass, which
  is repeated only if the graph is gone: it serves one gradient, and at most one graph is kept for each of
  JAX's devices. Derivatives are first and in reverse mode: JAX refuses `jax.jvp` and `jax.hessian`.

  Args:
    model: a `torch.nn.Module` in evaluation mode, or a function from a tensor [B, ...] to logits [B, C]. A
      module gets inputs in the dtype and on the device of its first floating-point parameter or buffer; a
      function gets them in the dtype of x, on the CPU.
    channels_last: whether x has its channels last, [B, H, W, C], and the model takes [B, C, H, W]. Otherwise
      the model gets x as it is; Square then needs `channel_axis=1` for images.

  Raises:
    errors.UserError: if `model` is not callable, or a module or a part of it is in training mode. Each call
      checks that again. `jax.grad` raises it if the logits have no gradient, after `detach()` for example.

  Example:
    >>> net = torch.nn.Linear(2, 2, bias=False).eval()
    >>> _ = net.load_state_dict({'weight': torch.tensor([[1., 0.], [0., 2.]])})
    >>> logits_fn = TorchModel(net)
    >>> print(logits_fn(jnp.array([[1., 3.]])), jax.grad(lambda x: logits_fn(x).sum())(jnp.ones((1, 2))))
    [[1. 6.]] [[1. 2.]]
  """

  def __init__(self, model: torch.nn.Module | Callable[[torch.Tensor], torch.Tensor], *,
               channels_last: bool = False):
    if not callable(model):
      shown = type(model) if isinstance(model, Mapping) else model  # a state dict is pages long
      raise errors.UserError('model', shown, 'use a torch.nn.Module or a function of tensors')
    self._model, self._channels_last = model, channels_last
    # Forward passes whose backward pass is still to come, by number.
    self._kept, self._lock, self._numbers = {}, threading.Lock(), itertools.count()
    self._apply = jax.custom_vjp(self._logits)
    self._apply.defvjp(self._forward, self._backward)
    self._check_mode()

  def __call__(self, x: Array) -> Array:
    """Maps f32[B, ...] to f32[B, C]; to float64 if JAX and the model compute in float64."""
    self._check_mode()
    x = jnp.asarray(x)  # narrow floats become float32: NumPy has no bfloat16
    return self._apply(x if x.dtype.itemsize >= 4 else x.astype(jnp.float32))

  def fingerprint_arrays(self) -> list[np.ndarray]:
    """The present parameters and buffers of a module, by which a state file of AutoAttack identifies it."""
    tensors = self._model.state_dict().values() if isinstance(self._model, torch.nn.Module) else ()
    return [_to_numpy(value) for value in tensors if isinstance(value, torch.Tensor)]

  def _check_mode(self) -> None:
    for name, module in self._model.named_modules() if isinstance(self._model, torch.nn.Module) else ():
      if module.training:
        raise errors.UserError('.'.join(filter(None, ['model', name, 'training'])), True,
                               'call model.eval(), attacks need evaluation mode')

  # Traced by JAX. Axes that vmap adds come first; ndim tells the callbacks how many there are.

  def _logits(self, x: Array) -> Array:
    return _on_host(self._host_logits, self._answer(x), x, np.int32(x.ndim), vmap_method='broadcast_all')

  def _forward(self, x: Array) -> tuple[Array, tuple[Array, Array]]:
    answer = self._answer(x), jax.ShapeDtypeStruct((), jnp.uint32)
    self._check_graph(x)
    logits, number = _on_host(self._host_forward, answer, x, np.int32(x.ndim), vmap_method='broadcast_all')
    return logits, (x, number)

  def _backward(self, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    x, number = residuals
    answer = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _on_host(self._host_backward, answer, x, number, cotangent, vmap_method='expand_dims'),

  def _answer(self, x: Array) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits of x, from a pass of two examples."""
    sample = _zeros(x)
    try:
      with torch.no_grad():
        logits = self._model(self._input(sample))
    except Exception as error:
      kind, line = type(error).__name__, str(error).strip().partition('\n')[0]
      # The remedy comes first, because an attack shortens the line.
      raise ValueError(f'PyTorch fails on {x.dtype}{list(x.shape)} with channels_last={self._channels_last}: '
                       f'check both; {kind}: {line}') from error
    if not isinstance(logits, torch.Tensor):
      part = repr(next(iter(logits), 0)) if isinstance(logits, Mapping) else 0
      raise ValueError(f'the PyTorch model returns a {type(logits).__name__}: return the logits alone, a '
                       f'tensor, TorchModel(lambda x: model(x)[{part}]) for example')
    batch = (len(x),) if logits.shape[:1] == (len(sample),) else logits.shape[:1]
    dtype = jax.dtypes.canonicalize_dtype(_to_numpy(logits).dtype)
    return jax.ShapeDtypeStruct((*batch, *logits.shape[1:]), dtype)

  def _check_graph(self, x: Array) -> None:
    """Raises UserError if PyTorch cannot differentiate the logits of x, by a pass of two examples."""
    kept = self._pass(_zeros(x))
    try:
      _gradient(kept, np.ones(kept.logits.shape, np.float32))
    except RuntimeError as error:
      name, line = getattr(self._model, '__name__', type(self._model).__name__), str(error).partition('\n')[0]
      raise errors.UserError('model', name, 'its logits have no gradient: remove detach(), no_grad() and the '
                             f'like from it, or use square, which needs none ({line})') from error

  # Called on the host, in any thread, with arrays that NumPy reads without a computation of JAX.

  def _host_logits(self, x: Any, ndim: Any) -> np.ndarray:
    batch, x = _flatten(x, ndim)
    with torch.no_grad():
      logits = self._model(self._input(x))
    return _to_numpy(logits).reshape(*batch, -1, logits.shape[-1])

  def _host_forward(self, x: Any, ndim: Any) -> tuple[np.ndarray, np.ndarray]:
    batch, x = _flatten(x, ndim)
    number, kept = next(self._numbers), self._pass(x)
    with self._lock:
      self._kept[number] = kept
      while len(self._kept) > jax.local_device_count():  # nobody asked for the gradient of the oldest
        del self._kept[min(self._kept)]
    logits = _to_numpy(kept.logits)
    return logits.reshape(*batch, -1, logits.shape[-1]), np.full(batch, number, np.uint32)

  def _host_backward(self, x: Any, number: Any, cotangent: Any) -> np.ndarray:
    x, number, cotangent = map(np.asarray, (x, number, cotangent))
    added = number.ndim
    batch = np.broadcast_shapes(x.shape[:added], cotangent.shape[:added])
    if x.shape[:added] != (1,) * added:  # otherwise there are several cotangents of one pass
      x = np.broadcast_to(x, batch + x.shape[added:])
    _, flat = _flatten(x, x.ndim - added)
    with self._lock:
      kept = self._kept.pop(int(number.min()), None)
    if kept is None or number.min() != number.max() or len(kept.x) != len(flat):
      kept = self._pass(flat)
    rows = np.broadcast_to(cotangent, batch + cotangent.shape[added:]).reshape(-1, *kept.logits.shape)
    gradients = [_to_numpy(_gradient(kept, row)) for row in rows]
    if self._channels_last:
      gradients = [np.moveaxis(gradient, 1, -1) for gradient in gradients]
    return np.asarray(gradients, x.dtype).reshape(*batch, *x.shape[added:])

  def _pass(self, x: np.ndarray) -> _Pass:
    with torch.inference_mode(False), torch.enable_grad():
      leaf = self._input(x).requires_grad_()
      return _Pass(leaf, self._model(leaf))

  def _input(self, x: np.ndarray) -> torch.Tensor:
    """The input of the model: a copy, because x is memory of JAX and a model may write to its input."""
    self._check_mode()
    tensor = torch.from_numpy(np.array(np.moveaxis(x, -1, 1) if self._channels_last else x, order='C'))
    if not isinstance(self._model, torch.nn.Module):
      return tensor
    weights = itertools.chain(self._model.parameters(), self._model.buffers())
    like = next(filter(torch.is_floating_point, weights), tensor)
    return tensor.to(like.device, like.dtype)


@dataclasses.dataclass(frozen=True)  # jax 0.7 refers to it weakly, which a tuple does not allow
class _Fill:
  """A function of arrays as a callback that writes its results in place; equal if the functions are."""
  function: Callable[..., Any]

  def __call__(self, _, out: Any, *args: Any) -> None:
    for buffer, result in zip(jax.tree.leaves(out), jax.tree.leaves(self.function(*args)), strict=True):
      buffer = np.asarray(buffer)
      if buffer.shape != result.shape:
        raise ValueError(f'the model gives shape {result.shape}, but {buffer.shape} when it was traced')
      buffer[...] = result


def _on_host(function: Callable[..., Any], answer: Any, *args: Any, vmap_method: str) -> Any:
  """Calls a bound method on the host. It equals itself in the next trace, so attacks compile once.

  On the CPU, `jax.pure_callback` copies large arrays in XLA's thread pool, and the callback waits for the
  copy, which can deadlock (jax issue 24255). Buffers are not copied.
  """
  if jax.default_backend() != 'cpu':
    return jax.pure_callback(function, answer, *args, vmap_method=vmap_method)
  return buffer_callback.buffer_callback(_Fill(function), answer, vmap_method=vmap_method)(*args)


def _zeros(x: Array) -> np.ndarray:
  """Two inputs like those of x, or one if there is one."""
  return np.zeros((min(2, len(x)), *x.shape[1:]), x.dtype)


def _flatten(x: Any, ndim: Any) -> tuple[tuple[int, ...], np.ndarray]:
  """The axes that vmap added to a batch of `ndim` axes, and the batch with these merged into its first."""
  x = np.asarray(x)
  added = x.ndim - int(np.asarray(ndim).max())
  return x.shape[:added], x.reshape(-1, *x.shape[added + 1:])


def _gradient(kept: _Pass, cotangent: np.ndarray) -> torch.Tensor:
  """The gradient of the logits times a cotangent; zero where the logits do not depend on the input."""
  cotangent = torch.from_numpy(np.array(cotangent)).to(kept.logits)
  return torch.autograd.grad(kept.logits, kept.x, cotangent, retain_graph=True, materialize_grads=True)[0]


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
  """A tensor as an array; bfloat16, which NumPy lacks, and half as float32."""
  tensor = tensor.detach()
  narrow = tensor.is_floating_point() and tensor.element_size() < 4
  return (tensor.float() if narrow else tensor).cpu().numpy()

"""A convolution whose derivatives stay fast inside `lax.scan` on the CPU.

XLA:CPU calls its fast (Eigen, multi-threaded) kernel for convolutions in the layout NHWC × HWIO →
NHWC without input dilation. JAX's own derivatives of a convolution are convolutions in *other*
layouts, which XLA rewrites into the fast one outside loops but not inside `scan`, `fori_loop` or
`while_loop`, where they run 5 to 100 times slower (github.com/jax-ml/jax/issues/12868). Here both
derivatives are written in the fast layout from the start, so that an attack can be a scan on the
CPU as on every other platform.
"""

import functools
from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
  """`lax.conv_general_dilated`, with derivatives that are fast inside loops on the CPU.

  The value is `lax.conv_general_dilated`'s. With K[kh, kw, C, F] the kernel, s the stride, g the
  cotangent:
    d/dx = conv(g with s−1 zeros between its entries, K flipped in space with C and F swapped)
    d/dK = conv(x as C images of B channels, g as a kernel for B channels, dilated by s).
  On other platforms, and for what the fast form does not cover (dilation, groups, other layouts or
  ranks), the derivatives are JAX's own.

  Supported: jit, vmap, reverse mode, and second derivatives as reverse over reverse or forward over
  reverse (the second derivative is JAX's own, slow in loops on the CPU). Not supported: `jax.jvp` of
  the function itself; where that is needed give the model `conv=jax.lax.conv_general_dilated`.

  Args:
    lhs: float[B, H, W, C] images (other layouts go to `lax.conv_general_dilated`).
    rhs: float[kh, kw, C, F] kernel, of lhs' dtype.
    window_strides: one stride for each spatial dimension.
    padding: 'VALID', 'SAME', or (low, high) for each spatial dimension.
    lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, batch_group_count: as in
      `lax.conv_general_dilated`.
    precision, preferred_element_type: likewise.

  Returns:
    float[B, H', W', F].

  Example:
    >>> nn.Conv(32, (3, 3), conv_general_dilated=conv_general_dilated)  # doctest: +SKIP

  Source: ours; the two identities are those of V. Dumoulin and F. Visin, A guide to convolution
  arithmetic for deep learning, 2016, section 4.
  """
  general = dict(
      lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers,
      feature_group_count=feature_group_count, batch_group_count=batch_group_count,
      precision=precision, preferred_element_type=preferred_element_type)
  dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
  grouped = feature_group_count != 1 or batch_group_count != 1
  if jnp.ndim(lhs) != 4 or dilated or grouped or preferred_element_type is not None or (
      lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
      != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)):
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **general)
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  return _convolution(lhs, rhs, strides, padding, precision)


def _plain(x, kernel, strides, padding, precision, dilation=(1, 1)):
  return lax.conv_general_dilated(
      x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT,
      precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(x, kernel, strides, padding, precision):
  return _plain(x, kernel, strides, padding, precision)


def _forward(x, kernel, strides, padding, precision):
  # The plain convolution, not `_convolution`: a second derivative may then be of either mode.
  return _plain(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, saved, g):
  x, kernel = saved

  def input_gradient(kernel, g):
    pads = []
    for n, k, s, (low, _), o in zip(x.shape[1:3], kernel.shape, strides, padding, g.shape[1:3]):
      before = k - 1 - low
      pads.append((before, n + k - 1 - before - (s * (o - 1) + 1)))
    if strides != (1, 1):
      interior = [(0, 0, 0), *((0, 0, s - 1) for s in strides), (0, 0, 0)]
      g = lax.pad(g, jnp.zeros((), g.dtype), interior)
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return _plain(g, flipped, (1, 1), pads, precision)

  def input_gradient_elsewhere(kernel, g):
    return jax.linear_transpose(lambda x: _plain(x, kernel, strides, padding, precision), x)(g)[0]

  def weight_gradient(x, g):
    pads = [
        (low, k - 1 + s * (o - 1) + 1 - n - low)
        for n, k, s, (low, _), o in zip(
            x.shape[1:3], kernel.shape, strides, padding, g.shape[1:3])]
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
      # One matrix product; as a convolution it takes twice as long.
      x = x[:, ::strides[0], ::strides[1]]
      return lax.dot_general(
          x, g, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)[None, None]
    by_channel = x.transpose(3, 1, 2, 0)  # [C, H, W, B]
    as_kernel = g.transpose(1, 2, 0, 3)  # [H', W', B, F]
    out = _plain(by_channel, as_kernel, (1, 1), pads, precision, dilation=strides)
    return out.transpose(1, 2, 0, 3)  # [C, kh, kw, F] to [kh, kw, C, F]

  def weight_gradient_elsewhere(x, g):
    return jax.linear_transpose(lambda k: _plain(x, k, strides, padding, precision), kernel)(g)[0]

  # Two choices rather than one, so that an attack, which needs no weight gradient, does not compute
  # it. The choice is made when the program is lowered for its platform, so the compiled program
  # holds no condition.
  dx = lax.platform_dependent(kernel, g, cpu=input_gradient, default=input_gradient_elsewhere)
  dk = lax.platform_dependent(x, g, cpu=weight_gradient, default=weight_gradient_elsewhere)
  return dx, dk


_convolution.defvjp(_forward, _backward)

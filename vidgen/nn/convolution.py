"""Convolutions, pools and frozen batch norm over 1, 2 or 3 dimensions, channels last."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vidgen.nn.partition import constrain
from vidgen.nn.weights import Initializer, fan_in, ones, weight, zeros

Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]

# The letters of the spatial dimensions for so many of them, in the order t, h, w.
SPATIAL = {1: "T", 2: "HW", 3: "THW"}


def pads(
  sizes: Sequence[int], *, window: Sequence[int], strides: Sequence[int], padding: Padding
) -> list[tuple[int, int]]:
  """(before, after) for each dimension.

  "SAME" is TensorFlow's: ceil(size / stride) outputs, the odd element of padding behind.
  """
  if padding == "VALID":
    return [(0, 0)] * len(sizes)
  if not isinstance(padding, str):
    if len(padding) != len(sizes):
      raise ValueError(f"padding {padding} for {len(sizes)} dimensions")
    return [(low, high) for low, high in padding]
  totals = [
    max((-(-size // stride) - 1) * stride + k - size, 0)
    for size, k, stride in zip(sizes, window, strides, strict=True)
  ]
  return [(total // 2, total - total // 2) for total in totals]


def convolve(
  x: Float[Array, "b *space i"],
  kernel: Float[Array, "*window i o"],
  *,
  strides: Sequence[int] | None = None,
  padding: Padding = "SAME",
) -> Float[Array, "b *out o"]:
  """The cross-correlation of `x` with `kernel`, in x's dtype; float32 at the highest precision.

  For CPUs a convolution over time becomes one over space whose channels hold all time taps: XLA's
  own takes up to four times as long there (643 against 172 ms for I3D's first layer).
  """
  n = x.ndim - 2
  strides = tuple(strides or (1,) * n)
  around = tuple(pads(x.shape[1:-1], window=kernel.shape[:n], strides=strides, padding=padding))
  kernel = kernel.astype(x.dtype)
  if n == 2:
    return _plane(x, kernel, strides, around)
  if n < 3:
    return _direct(x, kernel, strides, around)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, kernel: _taps_as_channels(x, kernel, strides, around),
    default=lambda x, kernel: _direct(x, kernel, strides, around),
  )


def _direct(x, kernel, strides, around):
  space = SPATIAL[len(strides)]
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=strides,
    padding=around,
    dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plane(x, kernel, strides, around):
  """`_direct` over h and w, with a gradient of the kernel that is quick on CPUs.

  There XLA's own is its slowest convolution: for 128 pictures of 32 x 32 x 32 it took 348 ms, one
  product with all windows side by side 50 ms, the convolution itself 30 ms (two EPYC cores).
  """
  return _direct(x, kernel, strides, around)


def _plane_forward(x, kernel, strides, around):
  return _direct(x, kernel, strides, around), (x, kernel)


def _plane_backward(strides, around, saved, g):
  x, kernel = saved

  def of_x(g, kernel):
    return jax.linear_transpose(lambda x: _direct(x, kernel, strides, around), x)(g)[0]

  def of_kernel(x, g):
    return jax.linear_transpose(lambda k: _direct(x, k, strides, around), kernel)(g)[0]

  def of_kernel_on_cpus(x, g):
    return _kernel_gradient(x, g, kernel.shape, strides, around)

  return of_x(g, kernel), lax.platform_dependent(x, g, cpu=of_kernel_on_cpus, default=of_kernel)


_plane.defvjp(_plane_forward, _plane_backward)


def _kernel_gradient(x, g, shape, strides, around):
  """The gradient [h, w, i, o] of a kernel: one matrix product over all positions, of float32.

  Side by side are the windows of x, or for stride 1 of g where it has no more channels. A product
  over all positions transposes its first operand, which is why the windows are the second: 66 ms
  instead of 118 for 128 pictures of 32 x 32 x 32 and a kernel of 3 x 3 (two Xeon cores).
  """
  rows, columns, inputs, outputs = shape
  sides = ((rows, around[0]), (columns, around[1]))
  back = [tuple(size - 1 - pad for pad in both) for size, both in sides]
  sum_over = functools.partial(jnp.einsum, "bhwk,bhwn->kn", precision=lax.Precision.HIGHEST)
  dtype, (x, g) = x.dtype, (a.astype(jnp.float32) for a in (x, g))
  if strides == (1, 1) and outputs <= inputs and min(map(min, back)) >= 0:
    # Of the output, whose window about an input ends at the kernel's first tap.
    found = sum_over(x, _windows(g, shape[:2], x.shape[1:3], strides, back))
    found = found.reshape(inputs, rows, columns, outputs)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
  else:
    found = sum_over(g, _windows(x, shape[:2], g.shape[1:3], strides, around)).T.reshape(shape)
  return found.astype(dtype)


def _windows(x, sizes, places, strides, around):
  """All taps of every place side by side as channels, [b, *places, taps times channels]."""
  x = jnp.pad(x, [(0, 0), *around, (0, 0)])
  last = [(place - 1) * stride + 1 for place, stride in zip(places, strides, strict=True)]
  taps = [
    x[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1]]
    for i in range(sizes[0])
    for j in range(sizes[1])
  ]
  return jnp.concatenate(taps, axis=-1)


def _taps_as_channels(x, kernel, strides, around):
  """3-D as 2-D: every output frame sees its window of frames side by side in the channels."""
  (b, _, h, w, c), taps = x.shape, kernel.shape[0]
  padded = jnp.pad(x, [(0, 0), around[0], (0, 0), (0, 0), (0, 0)])
  frames = (padded.shape[1] - taps) // strides[0] + 1
  if taps == 1:
    seen, kernel = padded[:, :: strides[0]], kernel[0]
  else:
    last = (frames - 1) * strides[0] + 1
    seen = [lax.slice_in_dim(padded, i, i + last, strides[0], axis=1) for i in range(taps)]
    seen = jnp.concatenate(seen, axis=-1)
    kernel = jnp.einsum("thwio->hwtio", kernel).reshape(*kernel.shape[1:3], taps * c, -1)
  flat = seen.reshape(b * frames, h, w, taps * c)
  out: Any
  if kernel.shape[:2] == (1, 1) and strides[1:] == (1, 1) and not any(map(any, around[1:])):
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = jnp.matmul(flat, kernel[0, 0], precision=precision)
  else:
    out = _plane(flat, kernel, strides[1:], tuple(around[1:]))
  return out.reshape(b, frames, *out.shape[1:])


def for_relu(inputs: int) -> Initializer:
  """`fan_in` with twice the variance: what a ReLU takes away (He et al., 2015)."""
  plain = fan_in(inputs)
  return lambda key, shape, dtype: 2**0.5 * plain(key, shape, dtype)


class Convolution(nn.Module):
  """A convolution over as many dimensions as `kernel` has sizes; `axes` names its channels.

  `gather` "kernel" has every device gather the whole kernel before it is used, where "as it lies"
  leaves it to the compiler. Where rows are split over devices, and a kernel over two other mesh
  axes, XLA has been seen (jax 0.10.2, CPU) to compute wrong values without it.
  """

  features: int
  kernel: Sequence[int]
  strides: Sequence[int] | None = None
  padding: Padding = "SAME"
  use_bias: bool = True
  axes: tuple[str | None, str | None] = (None, None)
  init: Initializer | None = None
  gather: Literal["as it lies", "kernel"] = "as it lies"

  @nn.compact
  def __call__(self, x: Float[Array, "b *space i"]) -> Float[Array, "b *out o"]:
    """Computes in x's dtype."""
    n = len(self.kernel)
    if x.ndim != n + 2:
      raise ValueError(f"{self.name}: input of shape {x.shape} for a kernel of {self.kernel}")
    kernel = weight(
      self,
      "kernel",
      shape=[*self.kernel, x.shape[-1], self.features],
      axes=[None] * n + list(self.axes),
      init=self.init or fan_in(n + 1),
    )
    if self.gather == "kernel":
      kernel = constrain(kernel, axes=[None] * kernel.ndim)
    y = convolve(x, kernel, strides=self.strides, padding=self.padding)
    if self.use_bias:
      bias = weight(self, "bias", shape=[self.features], axes=self.axes[1:], init=zeros)
      y = y + bias.astype(x.dtype)
    return y


class FrozenBatchNorm(nn.Module):
  """(x - mean) / sqrt(variance + epsilon) (* scale) + bias, by statistics that came with weights.

  All are parameters; `use_scale` says whether there is a scale.
  """

  epsilon: float
  use_scale: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """Normalises in float32; the result has the dtype of `x`."""

    def vector(name: str, init: Initializer) -> jax.Array:
      return weight(self, name, shape=x.shape[-1:], axes=[None], init=init)

    factor = lax.rsqrt(vector("variance", ones) + self.epsilon)
    if self.use_scale:
      factor = factor * vector("scale", ones)
    y = (x.astype(jnp.float32) - vector("mean", zeros)) * factor + vector("bias", zeros)
    return y.astype(x.dtype)


def max_pool(
  x: Float[Array, "b *space c"],
  *,
  window: Sequence[int],
  strides: Sequence[int] | None = None,
  padding: Padding = "VALID",
) -> Float[Array, "b *out c"]:
  """The largest value of each window; padding never wins."""
  return _pool(x, jnp.maximum, -jnp.inf, window, strides, padding)


def average_pool(
  x: Float[Array, "b *space c"],
  *,
  window: Sequence[int],
  strides: Sequence[int] | None = None,
  padding: Padding = "VALID",
  divisor: Literal["window", "inside"] = "window",
) -> Float[Array, "b *out c"]:
  """The mean of each window: over its size, padding being zeros, or over what is inside of `x`."""
  total = _pool(x, jnp.add, 0.0, window, strides, padding)
  if divisor == "window":
    count = 1.0
    for size in window:
      count *= size
    return total / count
  return total / _pool(jnp.ones_like(x[:1, ..., :1]), jnp.add, 0.0, window, strides, padding)


def _pool(
  x: jax.Array,
  combine: Callable[[Any, Any], jax.Array],
  empty: float,
  window: Sequence[int],
  strides: Sequence[int] | None,
  padding: Padding,
) -> jax.Array:
  """One dimension after the other by shifted slices: XLA's window reduction is slow on CPUs."""
  n = x.ndim - 2
  if len(window) != n:
    raise ValueError(f"window {tuple(window)} over an input of shape {x.shape}")
  strides = strides or (1,) * n
  around = pads(x.shape[1:-1], window=window, strides=strides, padding=padding)
  for axis, (size, stride, extra) in enumerate(zip(window, strides, around, strict=True), start=1):
    if size == 1 and stride == 1 and extra == (0, 0):
      continue
    widths = [extra if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, widths, constant_values=empty)
    count = (x.shape[axis] - size) // stride + 1
    if count < 1:
      raise ValueError(f"a window of {size} is longer than the {x.shape[axis]} of shape {x.shape}")
    last = (count - 1) * stride + 1
    parts = [lax.slice_in_dim(x, i, i + last, stride, axis=axis) for i in range(size)]
    x = parts[0]
    for part in parts[1:]:
      x = combine(x, part)
  return x

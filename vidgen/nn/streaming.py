"""Layers over time that give the same result for a whole video and for a video in pieces.

A layer that looks ahead has to wait: of a stream it returns frames `reach` later than it got them,
and keeps the last frames it saw in the collection "stream" for the next call. Which frame is which
is a traced number and every piece has one size, so one compiled program serves a video of any
length. Where a frame before the first or after the last is asked for, both ways take the nearest
that exists: symmetric replicate padding (Movie Gen, section 3.1.1).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidgen.nn.convolution import convolve
from vidgen.nn.weights import Initializer, weight, zeros

STREAM = "stream"  # the collection of what layers keep between pieces
# Up to so many values of a position over time, one matrix over all of them beats a convolution:
# on a CPU 14.6 against 25 to 44 ms for 8 frames of 16 channels, and as good at 8 of 64.
BANDED = 512


class Piece(flax.struct.PyTreeNode):
  """Some frames of a video, or all.

  x: [b t h w c]. step: None of a whole video; else the index of the first of these frames, were
  there no lag: a multiple of t. length: frames of the whole video, of which those below 0 or from
  `length` on are of no account. lag: frames that the layers so far have held back.
  """

  x: Any  # as the two below of no checked type: shapes without values go through here, too
  step: Any = None
  length: Any = None
  lag: int = flax.struct.field(pytree_node=False, default=0)

  @property
  def first(self) -> Any:
    """The index of the first frame in the video."""
    return 0 if self.step is None else self.step - self.lag

  @property
  def end(self) -> Any:
    """The length of the whole video."""
    return self.x.shape[1] if self.length is None else self.length


def each_frame(piece: Piece, layer: Callable[[Any], Any]) -> Piece:
  """`layer`, of [b h w c], on every frame by itself."""
  b, t = piece.x.shape[:2]
  x = layer(piece.x.reshape(b * t, *piece.x.shape[2:]))
  return piece.replace(x=x.reshape(b, t, *x.shape[1:]))


def with_past(module: nn.Module, x: jax.Array, *, frames: int) -> jax.Array:
  """`x` of a stream after the `frames` frames before it, which `module` keeps; zeros at first."""
  if not frames:
    return x
  shape = (x.shape[0], frames, *x.shape[2:])
  past = module.variable(STREAM, "past", jnp.zeros, shape, x.dtype)
  x = jnp.concatenate([past.value, x], axis=1)
  past.value = x[:, -frames:]
  return x


class Delay(nn.Module):
  """Holds a stream back until its lag is `lag`; a whole video passes."""

  @nn.compact
  def __call__(self, piece: Piece, *, lag: int) -> Piece:
    """The frames that belong beside those of a path with that lag."""
    if piece.step is None or lag == piece.lag:
      return piece
    x = with_past(self, piece.x, frames=lag - piece.lag)
    return piece.replace(x=x[:, : piece.x.shape[1]], lag=lag)


def repeat_frames(piece: Piece, *, times: int) -> Piece:
  """Every frame so many times."""
  if piece.step is None:
    return piece.replace(x=jnp.repeat(piece.x, times, axis=1))
  return Piece(
    jnp.repeat(piece.x, times, axis=1),
    piece.step * times,
    piece.end * times,
    lag=piece.lag * times,
  )


def centre_tap(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
  """A kernel [taps i o] that changes nothing: the identity at its centre."""
  del key
  taps, inputs, outputs = shape
  return jnp.zeros(tuple(shape), dtype).at[taps // 2].set(jnp.eye(inputs, outputs, dtype=dtype))


def binomial_taps(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
  """A kernel [3 i o] that takes a quarter, a half and a quarter of three frames: a still stays.

  Before frames are halved it keeps what would be left out, after they were doubled it makes what
  lies between two of them.
  """
  del key
  _, inputs, outputs = shape
  return jnp.array([0.25, 0.5, 0.25], dtype)[:, None, None] * jnp.eye(inputs, outputs, dtype=dtype)


class TemporalConvolution(nn.Module):
  """A convolution over time alone, its channels kept; fresh, it does not change a still.

  `taps` is odd; with a `stride` of s, every s-th frame is the centre of a result, ceil(t / s) in
  all. A stream comes in pieces of a multiple of the stride.
  """

  taps: int = 3
  stride: int = 1
  init: Initializer = centre_tap

  @nn.compact
  def __call__(self, piece: Piece) -> Piece:
    """Computes in x's dtype."""
    x, reach, stride, c = piece.x, self.taps // 2, self.stride, piece.x.shape[-1]
    kernel = weight(
      self, "kernel", shape=[self.taps, c, c], axes=[None, "embed", "embed_out"], init=self.init
    ).astype(x.dtype)
    bias = weight(self, "bias", shape=[c], axes=["embed_out"], init=zeros).astype(x.dtype)
    if piece.step is None:
      results = -(-x.shape[1] // stride)
      seen = np.arange(-reach, (results - 1) * stride + reach + 1).clip(0, x.shape[1] - 1)
      out = piece
    else:
      if x.shape[1] % stride:
        raise ValueError(f"pieces of {x.shape[1]} frames for a stride of {stride}")
      wait = reach - stride + 1
      wait += -(piece.lag + wait) % stride  # centres are at multiples of the stride
      first = piece.first - wait - reach
      seen = first + jnp.arange(x.shape[1] - stride + 1 + 2 * reach)
      x = with_past(self, x, frames=wait + reach)
      # What is not in the video or not in the piece is seen only by results of no account.
      seen = (seen.clip(0, piece.end - 1) - first).clip(0, x.shape[1] - 1)
      lag = (piece.lag + wait) // stride
      out = Piece(x, piece.step // stride, -(-piece.end // stride), lag=lag)
    return out.replace(x=_over_time(x, kernel, seen, stride) + bias)


def _over_time(x: jax.Array, kernel: jax.Array, seen: Any, stride: int) -> jax.Array:
  """Result i is the sum over taps j of frame seen[i * stride + j] times the tap's matrix."""
  taps, frames = kernel.shape[0], x.shape[1]
  if taps == stride == 1:
    return _product("bthwi,io->bthwo", x, kernel[0])
  if frames > 1 and frames * x.shape[-1] > BANDED:
    if isinstance(seen, np.ndarray):
      x = jnp.pad(x, [(0, 0), _ends(seen, frames), (0, 0), (0, 0), (0, 0)], mode="edge")
    else:
      x = jnp.take(x, seen, axis=1)
    return convolve(x, kernel[:, None, None], strides=(stride, 1, 1), padding="VALID")
  results = (seen.shape[0] - taps) // stride + 1
  places = seen[stride * np.arange(results)[:, None] + np.arange(taps)]  # [results, taps]
  band = jax.nn.one_hot(places, frames, dtype=kernel.dtype)
  band = _product("rjt,jio->tiro", band, kernel)
  return _product("bthwi,tiro->brhwo", x, band)


def _ends(seen: np.ndarray, frames: int) -> tuple[int, int]:
  """How many frames of `seen`, of a whole video, repeat its first and its last."""
  return int(np.sum(seen == 0)) - 1, int(np.sum(seen == frames - 1)) - 1


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.einsum(equation, x, y, precision=precision)

"""Overlapping windows over a long axis, and sampling that agrees where they overlap.

MultiDiffusion (Bar-Tal et al., 2023): at every step the network sees each window by itself, and
where windows overlap their velocities are averaged, so that the windows stay one sample. Movie Gen
(section 3.1.5) upsamples long clips so, in windows of 14 frames of which 4 overlap.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vidgen.diffusion.flow import FlowTime, Velocity

Kind = Literal["uniform", "linear", "triangle"]
Predict = Callable[[Array, FlowTime, PyTree, PyTree], Array]


def window_starts(length: int, *, size: int, overlap: int) -> tuple[int, ...]:
  """Where windows of `size` start so that they cover [0, length), `overlap` shared by neighbours.

  The last one ends at `length`, and so may share more. One window where `length` fits in it.

  Raises:
    ValueError: nothing to cover, or an overlap outside of [0, size).
  """
  if length < 1 or not 0 <= overlap < size:
    raise ValueError(f"no windows of {size} with overlap {overlap} over a length of {length}")
  if length <= size:
    return (0,)
  return (*range(0, length - size, size - overlap), length - size)


def window_weights(size: int, *, overlap: int, kind: Kind = "linear") -> Float[np.ndarray, " size"]:
  """float32 weights within a window, symmetric and positive: an end of 0 could be all there is.

  uniform: 1 everywhere, so that a window begins and ends abruptly.
  linear: rises over the first `overlap` to 1 and falls over the last, so that the weights of two
    neighbours add up to 1. An overlap of more than half of the window makes a trapezium of it.
  triangle: rises to the middle and falls.
  """
  place = np.arange(1, size + 1)
  place = np.minimum(place, place[::-1])  # 1 at the ends
  match kind:
    case "uniform":
      weights = np.ones(size)
    case "linear":
      weights = np.minimum(place / (overlap + 1), 1.0)
    case "triangle":
      weights = place / place.max()
    case _:
      raise ValueError(f"unknown weights {kind!r}; known are uniform, linear and triangle")
  return weights.astype(np.float32)


def window_shares(
  starts: Sequence[int], *, length: int, weights: Float[np.ndarray, " size"]
) -> Float[np.ndarray, "n size"]:
  """What each window contributes to its frames: weights over their sum, which thus is 1 everywhere.

  Exactly 1 where one window covers alone.

  Raises:
    ValueError: windows that reach beyond `length` or leave a frame out, or weights of 0 or less.
  """
  size = len(weights)
  frames = np.asarray(starts)[:, None] + np.arange(size)
  if frames.min() < 0 or frames.max() >= length or len(np.unique(frames)) != length:
    raise ValueError(f"windows of {size} at {tuple(starts)} do not cover [0, {length}) exactly")
  if not (weights > 0).all():
    raise ValueError("weights of windows must be positive")
  total = np.bincount(frames.ravel(), np.tile(weights, len(starts)))
  return (weights / total[frames]).astype(np.float32)


def merge(
  windows: Float[Array, "n ..."],
  *,
  starts: Sequence[int],
  length: int,
  weights: Float[np.ndarray, " size"],
  axis: int = 1,
) -> Float[Array, "..."]:
  """The weighted mean of windows where they overlap, float32; `axis` is that of the result.

  Raises:
    ValueError: as `window_shares`, or windows of another size or number.
  """
  if windows.shape[0] != len(starts) or windows.shape[axis + 1] != len(weights):
    raise ValueError(f"windows {windows.shape}: not {len(starts)} of {len(weights)} on axis {axis}")
  shares = window_shares(starts, length=length, weights=weights)
  shape = [*windows.shape[1:]]
  shape[axis] = length
  across = (1,) * (windows.ndim - 2 - axis)
  total = jnp.zeros(shape, jnp.float32)
  for window, start, share in zip(windows, starts, shares, strict=True):
    total = _added(total, window * share.reshape(-1, *across), start=start, axis=axis)
  return total


def _added(total: Array, window: Array, *, start: int | Array, axis: int) -> Array:
  here = jax.lax.dynamic_slice_in_dim(total, start, window.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(total, here + window, start, axis)


def multi_diffusion(
  predict: Predict,
  *,
  shared: PyTree,
  framed: PyTree,
  starts: Sequence[int],
  weights: Float[np.ndarray, " size"],
  at_once: int = 1,
) -> Velocity:
  """The velocity of a clip [b, t, ...] of any length, from a network for windows of it.

  `predict(x [m, size, ...], time [m], shared [m, ...], framed [m, size, ...])` sees m = b *
  `at_once` windows: the examples' own, side by side. `shared` [b, ...] is of a whole clip, such as
  its text; `framed` [b, t, ...] goes with the frames. One window more or less is one turn of a
  loop: neither the program nor its memory, but for the clip itself, grows with t.

  Raises:
    ValueError: `at_once` of less than 1; of the result, as `window_shares`.
  """
  if at_once < 1:
    raise ValueError(f"at_once must be at least 1, got {at_once}")
  size = len(weights)

  def velocity(x: Float[Array, "b ..."], time: FlowTime) -> Float[Array, "b ..."]:
    shares = window_shares(starts, length=x.shape[1], weights=weights)
    groups = -(-len(starts) // at_once)
    more = groups * at_once - len(starts)  # the last window again, with no share in the result
    places = np.pad(np.asarray(starts, np.int32), (0, more), mode="edge")
    shares = np.pad(shares, ((0, more), (0, 0)))
    across = (1,) * (x.ndim - 2)
    repeated = jax.tree.map(lambda y: jnp.repeat(y, at_once, axis=0), (time, shared))

    def group(total, inputs):
      here, parts = inputs

      def cut(y):
        pieces = [jax.lax.dynamic_slice_in_dim(y, here[i], size, 1) for i in range(at_once)]
        return jnp.stack(pieces, axis=1).reshape(-1, *pieces[0].shape[1:])

      out = predict(cut(x), repeated[0], repeated[1], jax.tree.map(cut, framed))
      out = out.astype(jnp.float32).reshape(len(x), at_once, *out.shape[1:])
      for i in range(at_once):
        part = out[:, i] * parts[i].reshape(-1, *across)
        total = _added(total, part, start=here[i], axis=1)
      return total, None

    xs = (places.reshape(groups, at_once), shares.reshape(groups, at_once, size))
    total, _ = jax.lax.scan(group, jnp.zeros(x.shape, jnp.float32), xs)
    return total

  return velocity

"""Long videos through the autoencoder, a part at a time: memory does not grow with their length.

A stream computes what the whole would (`stream_encode`, `stream_decode`). Tiles are what the report
does (section 3.1.1): pieces of 32 frames by themselves, which do not know of each other, those of
the decoder overlapping by half and blended.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.diffusion.windows import window_starts
from vidgen.models.tae import TAE, posterior
from vidgen.nn.streaming import STREAM, Piece

Part = Literal["encode", "decode"]


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Tiles in frames and pixels of the video: how large, and how much of it neighbours share.

  `side` None leaves frames whole. The report has tiles in time only, and does not say from where
  its ramp over N shared frames, w_j = j / N, counts: here from 0.
  """

  frames: int = 32
  overlap: int = 16
  side: int | None = None
  side_overlap: int = 64


ENCODER_TILES, DECODER_TILES = Tiles(overlap=0), Tiles(overlap=16)


def stream_decode(
  network: TAE, params: Any, latents: Any, *, pieces: int = 1, frames: int | None = None
) -> Iterator[np.ndarray]:
  """Successive frames of what `TAE.decode` returns of `latents` [b t h w c], float32, unclipped.

  `latents` may be any array that slices along time; the device holds `pieces` of their frames at a
  time. The first results come when the layers have seen as far as they look ahead. Of the video the
  first `frames` are kept (None: all).
  """
  length = latents.shape[1] * network.temporal_stride
  stream = _stream(network, "decode", pieces)  # type: ignore[reportArgumentType]  # Linen has a hash
  yield from stream(params, latents, results=length if frames is None else min(frames, length))


def stream_encode(
  network: TAE, params: Any, video: Any, *, pieces: int = 8
) -> Iterator[np.ndarray]:
  """Successive frames of the mean of `TAE.encode` of `video` [b t h w 3].

  `pieces` is in frames of the video: a multiple of the network's temporal stride.

  Raises:
    ValueError: it is not.
  """
  if pieces % network.temporal_stride:
    raise ValueError(f"pieces of {pieces} frames, no multiple of {network.temporal_stride}")
  stream = _stream(network, "encode", pieces)  # type: ignore[reportArgumentType]  # Linen has a hash
  yield from stream(params, video, results=-(-video.shape[1] // network.temporal_stride))


def streams(stage: Any) -> bool:
  """Whether an autoencoder's stage can encode and decode in pieces: its attention is bounded."""
  network = getattr(stage, "network", None)
  return network is not None and getattr(network, "attention_window", 0) is not None


class Stream:
  """A part of `network` as one program for pieces of `pieces` frames of its input."""

  def __init__(self, network: TAE, *, part: Part, pieces: int):
    self.network, self.part, self.pieces = network, part, pieces
    self.traced = 0  # how often, for those who want to see that it is once a shape
    self._step = jax.jit(self._step_of, donate_argnums=1)

  def __call__(self, params: Any, x: Any, *, results: int) -> Iterator[np.ndarray]:
    """Frames [0, results) of the output, in order."""
    k, length = self.pieces, x.shape[1]
    first = jax.ShapeDtypeStruct((x.shape[0], k, *x.shape[2:]), jnp.float32)
    shapes, out = self._shapes(params, first)
    states: Any = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    made = out.x.shape[1]
    for i in range(-(-(results + out.lag) // made)):
      part = np.asarray(x[:, i * k : (i + 1) * k], np.float32)
      part = np.pad(part, [(0, 0), (0, k - part.shape[1]), *[(0, 0)] * (part.ndim - 2)])
      y, states = self._step(params, states, part, np.int32(i * k), np.int32(length))
      begin = i * made - out.lag
      if begin + made > 0:
        yield np.asarray(y[:, max(0, -begin) : max(0, results - begin)])

  def _level(self, params: Any, state: Any, piece: Piece, level: int) -> tuple[Piece, Any]:
    """One level's result and what its layers keep; without `state`, of a beginning stream."""
    variables = {"params": params} if state is None else {"params": params, STREAM: state}
    method = f"{self.part}_level"
    piece, kept = self.network.apply(  # type: ignore[reportGeneralTypeIssues]  # two, being mutable
      variables, piece, level=level, method=method, mutable=[STREAM]
    )
    return piece, kept.get(STREAM, {})

  def _shapes(self, params: Any, x: jax.ShapeDtypeStruct) -> tuple[list[Any], Piece]:
    """Abstract states of all levels and the last one's result."""
    number = jax.ShapeDtypeStruct((), jnp.int32)
    piece, states = Piece(x, number, number), []  # type: ignore[reportArgumentType]  # abstract
    for level in range(len(self.network.channels)):
      run = functools.partial(self._level, level=level)
      piece, state = jax.eval_shape(run, params, None, piece)
      states.append(state)
    return states, piece

  def _step_of(
    self, params: Any, states: list[Any], x: jax.Array, step: jax.Array, length: jax.Array
  ) -> tuple[jax.Array, list[Any]]:
    """The last level's frames from the next frames of the input, and the states after them."""
    self.traced += 1
    piece, after = Piece(x, step, length), []
    for level, state in enumerate(states):
      piece, state = self._where_needed(params, state, piece, level)
      after.append(state)
    x = piece.x
    return (posterior(x).mean if self.part == "encode" else x.astype(jnp.float32)), after

  def _where_needed(
    self, params: Any, state: Any, piece: Piece, level: int
  ) -> tuple[Piece, dict[str, Any]]:
    """A level, left out before the video has come to it and after the last of its results."""

    def run(state: Any, piece: Piece) -> tuple[jax.Array, Any]:
      piece, state = self._level(params, state, piece, level)
      return piece.x, state

    out, _ = jax.eval_shape(functools.partial(self._level, level=level), params, state, piece)
    taken, made = piece.x.shape[1], out.x.shape[1]
    step, length = piece.step * made // taken, -(-piece.end * made // taken)
    needed = (piece.first + taken > 0) & (step - out.lag < length)
    idle = lambda state, piece: (jnp.zeros(out.x.shape, out.x.dtype), state)  # noqa: E731 (one line)
    x, state = jax.lax.cond(needed, run, idle, state, piece)
    return Piece(x, step, length, lag=out.lag), state


@functools.lru_cache(maxsize=16)
def _stream(network: Any, part: Part, pieces: int) -> Stream:
  """One for each: what it compiled serves the next clip."""
  return Stream(network, part=part, pieces=pieces)


def tiled_encode(
  network: TAE, params: Any, video: Any, *, tiles: Tiles = ENCODER_TILES
) -> Iterator[np.ndarray]:
  """Successive frames of latents (the mean) of `video` [b t h w 3], tile by tile.

  Tiles do not share frames, whatever `tiles.overlap`; the last may be shorter. An image is one.

  Raises:
    ValueError: tiles that are no multiples of the network's strides.
  """
  _check(tiles, network)
  encode = _program(network, "encode")  # type: ignore[reportArgumentType]  # Linen has a hash
  if video.shape[1] == 1:
    tiles = Tiles()
  run = _over_space(functools.partial(encode, params), tiles, unit=1, scale=network.spatial_stride)
  for start in range(0, video.shape[1], tiles.frames):
    yield run(np.asarray(video[:, start : start + tiles.frames]))


def tiled_decode(
  network: TAE, params: Any, latents: Any, *, tiles: Tiles = DECODER_TILES
) -> Iterator[np.ndarray]:
  """Successive frames of the video of `latents` [b t h w c], tile by tile, unclipped.

  Where tiles overlap the weight of the later one rises: as the report prints it, on the earlier
  one, both ends of the overlap would jump. An image is one tile.

  Raises:
    ValueError: tiles that are no multiples of the network's strides.
  """
  _check(tiles, network)
  decode = _program(network, "decode")  # type: ignore[reportArgumentType]  # Linen has a hash
  if latents.shape[1] == 1:
    tiles = Tiles()
  stride = network.temporal_stride
  run = _over_space(functools.partial(decode, params), tiles, unit=network.spatial_stride, scale=1)
  size, overlap = tiles.frames // stride, tiles.overlap // stride
  yield from tiled(run, latents, axis=1, size=size, overlap=overlap, grown=stride)


def tiled(
  run: Callable[[Any], np.ndarray],
  x: Any,
  *,
  axis: int,
  size: int,
  overlap: int,
  grown: int = 1,
  shrunk: int = 1,
) -> Iterator[np.ndarray]:
  """Successive parts, along `axis`, of `run` over tiles of `x`, blended where they overlap.

  `run` makes `grown` of every `shrunk` along the axis. Of the n that a tile shares with those
  before it, number j is (1 - j / n) theirs and j / n its own.

  Raises:
    ValueError: see `vidgen.diffusion.windows.window_starts`.
  """
  length = x.shape[axis]
  starts = window_starts(length, size=size, overlap=overlap)
  before = (slice(None),) * axis
  held: np.ndarray | None = None
  for start, following in zip(starts, (*starts[1:], length), strict=True):
    out = run(x[*before, start : start + size])
    if held is not None:
      shared = held.shape[axis]
      ramp = np.arange(shared, dtype=np.float32) / shared
      ramp = ramp.reshape(-1, *(1 for _ in out.shape[axis + 1 :]))
      blend = held * (1 - ramp) + out[*before, :shared] * ramp
      out = np.concatenate([blend, out[*before, shared:]], axis=axis)
    done = (following - start) * grown // shrunk
    yield out[*before, :done]
    held = out[*before, done:]


def _over_space(
  run: Callable[[Any], Any], tiles: Tiles, *, unit: int, scale: int
) -> Callable[[Any], np.ndarray]:
  """`run` over tiles of rows and columns; `unit` pixels of the video are one of its input."""

  def whole(x: Any) -> np.ndarray:
    return np.asarray(run(x))

  if tiles.side is None:
    return whole
  options = {"size": tiles.side // unit, "overlap": tiles.side_overlap // unit}
  options |= {"grown": unit, "shrunk": scale}

  def columns(x: Any) -> np.ndarray:
    return np.concatenate(list(tiled(whole, x, axis=3, **options)), axis=3)

  return lambda x: np.concatenate(list(tiled(columns, x, axis=2, **options)), axis=2)


def _check(tiles: Tiles, network: TAE) -> None:
  for name, value, stride in (
    ("frames", tiles.frames, network.temporal_stride),
    ("overlap", tiles.overlap, network.temporal_stride),
    ("side", tiles.side or 0, network.spatial_stride),
    ("side_overlap", tiles.side_overlap, network.spatial_stride),
  ):
    if value % stride:
      raise ValueError(f"tiles.{name} of {value} is no multiple of {stride}")


@functools.lru_cache(maxsize=16)
def _program(network: Any, part: Part) -> Callable[..., jax.Array]:
  if part == "decode":
    return jax.jit(lambda params, x: network.apply({"params": params}, x, method="decode"))

  def encode(params: Any, x: jax.Array) -> jax.Array:
    found: Any = network.apply({"params": params}, x, method="encode")
    return found.mean

  return jax.jit(encode)

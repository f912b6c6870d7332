"""From a decoded clip to a training example; everything random comes from counted numbers.

The random numbers of an example are a hash of (seed, position in the data order, draw): they need
no generator, no order of evaluation, and are made for a whole batch at once.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8, UInt64

from vidgen.inputs.decode import Clip, frame_indices
from vidgen.inputs.quarantine import BadSample

# draws: one column each of `uniforms`
TIME, ROW, COLUMN, FLIP, DROP, DRAWS = range(6)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
  """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); wraps around by design."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def random_bits(
  seed: int, positions: Int64[np.ndarray, " b"], *, draws: int
) -> UInt64[np.ndarray, "b draws"]:
  """64 random bits for each (position, draw); a function of (seed, position, draw) alone."""
  base = _mix(np.full(1, seed % 2**64, np.uint64) + _GOLDEN)
  rows = _mix(base + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
  columns = (np.arange(draws, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
  return _mix(rows[:, None] ^ _mix(columns)[None])


def uniforms(
  seed: int, positions: Int64[np.ndarray, " b"], *, draws: int = DRAWS
) -> Float64[np.ndarray, "b draws"]:
  """Numbers in [0, 1), as `random_bits`."""
  return (random_bits(seed, positions, draws=draws) >> np.uint64(11)) * 2.0**-53


def start_time(clip: Clip, *, fps: float, frames: int, draw: float) -> float:
  """When the sampled frames begin: `draw` in [0, 1] of the slack that the clip leaves; seconds.

  Raises:
    BadSample: the clip ends before the last sampled frame.
  """
  if frames == 1 and len(clip.times) == 1:
    return 0.0
  last = (frames - 1) / fps
  if last >= clip.duration:
    raise BadSample(f"{clip.duration:.3f} s is too short for {frames} frames at {fps:g} fps")
  return draw * max(0.0, clip.duration - frames / fps)


def crop_clip(
  clip: Clip,
  out: UInt8[np.ndarray, "t h w 3"],
  *,
  fps: float,
  time: float,
  row: float,
  column: float,
) -> None:
  """Writes the sampled frames, cropped, into `out`; `time`, `row`, `column` in [0, 1] of the slack."""
  count, height, width = out.shape[:3]
  start = start_time(clip, fps=fps, frames=count, draw=time)
  chosen = frame_indices(clip.times, fps=fps, count=count, start=start, tick=clip.tick)
  top = round(row * (clip.frames.shape[1] - height))
  left = round(column * (clip.frames.shape[2] - width))
  out[:] = clip.frames[chosen, top : top + height, left : left + width]


def to_unit_range(video: UInt8[np.ndarray, "b t h w 3"]) -> Float32[np.ndarray, "b t h w 3"]:
  """[0, 255] to [-1, 1]."""
  return np.subtract(np.multiply(video, np.float32(1 / 127.5)), np.float32(1.0))


def drop_captions(
  tokens: Int32[np.ndarray, "b l"],
  mask: Bool[np.ndarray, "b l"],
  dropped: Bool[np.ndarray, " b"],
  *,
  end: int,
  pad: int,
) -> None:
  """Makes the captions of `dropped` rows the null caption [end, pad, ...], in place."""
  tokens[dropped] = pad
  tokens[dropped, 0] = end
  mask[dropped] = False
  mask[dropped, 0] = True

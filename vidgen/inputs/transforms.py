"""From a decoded clip to a training example; what is random comes in as numbers in [0, 1)."""

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from vidgen.inputs.decode import Clip, Span

# the random numbers of an example, by their place among its draws
TIME, ROW, COLUMN, FLIP, DROP, DRAWS = range(6)


def crop_clip(
  clip: Clip, *, span: Span, size: tuple[int, int], row: float, column: float
) -> UInt8[np.ndarray, "t h w 3"]:
  """The frames of `span`, cropped to `size` (h, w) at `row` and `column` in [0, 1] of the slack.

  Raises:
    BadSample: the clip is too short.
  """
  chosen = span.indices(clip.times, duration=clip.duration, tick=clip.tick)
  top = round(row * (clip.frames.shape[1] - size[0]))
  left = round(column * (clip.frames.shape[2] - size[1]))
  return clip.frames[chosen, top : top + size[0], left : left + size[1]]


def has_slack(clip: Clip, *, span: Span, size: tuple[int, int]) -> bool:
  """Whether there is any choice of where to cut."""
  still = len(clip.times) == 1 or not span.slack(clip.duration)
  return not still or clip.frames.shape[1:3] != size


def to_unit_range(video: UInt8[np.ndarray, "b t h w 3"]) -> Float32[np.ndarray, "b t h w 3"]:
  """[0, 255] to [-1, 1]."""
  result = video.astype(np.float32)
  result *= np.float32(1 / 127.5)
  result -= np.float32(1.0)
  return result


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

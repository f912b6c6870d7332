"""Pixels as pictures want them: unsigned bytes in RGB, and a size that an eye can read."""

import math

import numpy as np
from jaxtyping import Float, UInt8

from vidgen.media.video import to_uint8

Video = Float[np.ndarray, "t h w c"] | UInt8[np.ndarray, "t h w c"]
Videos = Float[np.ndarray, "n t h w c"] | UInt8[np.ndarray, "n t h w c"]


def to_rgb(frames: np.ndarray) -> np.ndarray:
  """Frames [..., c] as bytes [..., 3]: floats in [-1, 1] are clipped and rounded, bytes are kept.

  One channel is repeated to three. A pixel that is not a number is drawn black, so that a diverged
  model still gives a picture.

  Raises:
    ValueError: neither floats nor uint8, or neither 1 nor 3 channels.
  """
  if frames.dtype != np.uint8:
    if not np.issubdtype(frames.dtype, np.floating):
      raise ValueError(f"frames must be floats in [-1, 1] or uint8, got {frames.dtype}")
    frames = to_uint8(np.nan_to_num(frames, nan=-1.0, posinf=1.0, neginf=-1.0))
  if frames.shape[-1] == 1:
    frames = np.repeat(frames, 3, axis=-1)
  if frames.shape[-1] != 3:
    raise ValueError(f"frames must have 1 or 3 channels, got {frames.shape[-1]}")
  return np.ascontiguousarray(frames)


def legible_scale(height: int, width: int, *, at_least: int) -> int:
  """The smallest whole factor that brings the shorter side of a frame to `at_least` pixels."""
  return max(1, math.ceil(at_least / min(height, width)))

"""Animated GIF: one palette for the whole clip, frame times that keep the clip's speed."""

import io
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from vidgen.media.pixels import Video, legible_scale, to_rgb


def frame_times(frames: int, *, fps: float | int) -> list[int]:
  """Milliseconds that each frame is shown.

  GIF counts in hundredths of a second, so the end of every frame is rounded, not its length: the
  clip never drifts by more than 5 ms. No frame is shorter than 20 ms, below which players slow
  down to a tenth of a second instead.

  Raises:
    ValueError: `fps` is not a positive number.
  """
  if not 0 < fps < float("inf"):
    raise ValueError(f"fps must be positive, got {fps}")
  ends = np.floor(100.0 * np.arange(frames + 1) / fps + 0.5).astype(int)
  return [10 * max(2, int(length)) for length in np.diff(ends)]


def encode_gif(video: Video, *, fps: float | int, scale: int | None = None) -> bytes:
  """A looping GIF of one video [t, h, w, c], uint8 or floats in [-1, 1].

  The 256 colours are chosen over all frames at once, so a still background does not flicker; with
  256 colours or fewer they are exact. `scale` repeats each pixel that many times along h and w;
  by default tiny videos are enlarged until the shorter side has 128 pixels. Frames that equal the
  one before are stored as a longer frame.

  Raises:
    ValueError: no frames, or what `frame_times` and `to_rgb` refuse.
  """
  t, h, w, _ = video.shape
  if not t:
    raise ValueError("a GIF needs at least one frame")
  scale = scale or legible_scale(h, w, at_least=128)
  times = frame_times(t, fps=fps)
  tall = Image.fromarray(to_rgb(video).reshape(t * h, w, 3))
  indexed = tall.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
  size = (w * scale, h * scale)
  frames = [
    indexed.crop((0, i * h, w, (i + 1) * h)).resize(size, Image.Resampling.NEAREST)
    for i in range(t)
  ]
  file = io.BytesIO()
  frames[0].save(
    file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=False
  )
  return file.getvalue()


def write_gif(
  video: Video, *, path: str | PathLike[str], fps: float | int, scale: int | None = None
) -> None:
  """Writes `encode_gif` to a file."""
  Path(path).write_bytes(encode_gif(video, fps=fps, scale=scale))

"""Draws clips: flat colours, edges anti-aliased by the signed distance to the outline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vidgen.shapes_world import emblem
from vidgen.shapes_world.captions import caption_clip
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  COLOURS,
  SIZES,
  STRIPES,
  Clip,
  Figure,
  WorldSpec,
  sample_clip,
)


def render(
  clip: Clip, spec: WorldSpec, *, frames: Sequence[int] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
  """The frames of a clip, or those of these numbers; frame k shows the time k / fps."""
  times = np.asarray(range(spec.frames) if frames is None else frames) / spec.fps
  video = np.empty((len(times), spec.height, spec.width, 3), np.float32)
  video[:] = background(clip.background, height=spec.height, width=spec.width)
  for figure in clip.figures:
    for frame, (x, y) in zip(video, figure.positions(times), strict=True):
      _draw(frame, figure, x * spec.width, y * spec.height)
  return np.rint(video).astype(np.uint8)


def background(name: str, *, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
  """An empty background, 0 to 255; a row of pixels that two stripes share gets their mean."""
  first, second = (np.array(tone, np.float32) for tone in BACKGROUNDS[name])
  fine = np.arange(height * STRIPES) // height % 2  # STRIPES sub-rows to a row of pixels
  share = fine.reshape(height, STRIPES).mean(axis=1, dtype=np.float32)[:, None, None]
  return np.broadcast_to(first + (second - first) * share, (height, width, 3))


def distance(
  shape: str, dx: Float[np.ndarray, "*#s"], dy: Float[np.ndarray, "*#s"], radius: float
) -> Float[np.ndarray, "*s"]:
  """Signed distance to a shape's outline in pixels, negative inside; too small at outer corners.

  `dx`, `dy`: pixels from the shape's centre to each point; `radius`: half the side of the box that
  the shape touches on all sides, in pixels. The part of a pixel that is covered is about 0.5 minus
  this, clipped to [0, 1].
  """
  if shape == "circle":
    return np.sqrt(dx * dx + dy * dy) - radius
  x, y = np.abs(dx), np.abs(dy)
  if shape == "square":
    return np.maximum(x, y) - radius
  if shape == "triangle":  # points up: a base as wide as the box, the apex at the middle of its top
    slope = (2 * x - dy - radius) * np.float32(1 / np.sqrt(5))
    return np.maximum(slope, dy - radius)
  if shape == "cross":  # two bars a third of the box wide
    return np.maximum(np.minimum(x, y) - radius / 3, np.maximum(x, y) - radius)
  raise ValueError(f"unknown shape {shape!r}")


def _draw(frame: np.ndarray, figure: Figure, x: float, y: float) -> None:
  """Blends one figure, centred at pixel coordinates (x, y), into a frame [h, w, 3]."""
  height, width, _ = frame.shape
  radius = SIZES[figure.size] / 2 * min(height, width)
  top, left = max(int(y - radius) - 1, 0), max(int(x - radius) - 1, 0)
  patch = frame[top : int(y + radius) + 2, left : int(x + radius) + 2]
  dy = np.arange(top, top + patch.shape[0], dtype=np.float32)[:, None] + np.float32(0.5 - y)
  dx = np.arange(left, left + patch.shape[1], dtype=np.float32)[None, :] + np.float32(0.5 - x)
  if figure.emblem is not None:
    share, colour = emblem.draw(figure.emblem, dx, dy, radius)
  else:
    share = np.clip(0.5 - distance(figure.shape, dx, dy, radius), 0, 1)
    colour = np.array(COLOURS[figure.colour], np.float32)
  patch += share[..., None] * (colour - patch)


def area_downsample(
  video: UInt8[np.ndarray, "*b t h w 3"], *, size: int, frames: int
) -> UInt8[np.ndarray, "*b t2 h2 w2 3"]:
  """Every (t / frames)-th frame, and the mean of each block of pixels, rounded.

  Raises:
    ValueError: the sides or the number of frames are not multiples of what is asked for.
  """
  *batch, t, h, w, c = video.shape
  if t % frames or h % size or w % size:
    raise ValueError(
      f"{t} frames of {h}x{w} cannot become {frames} of {size}x{size} by whole blocks"
    )
  video = video[..., :: t // frames, :, :, :]
  blocks = video.reshape(*batch, frames, size, h // size, size, w // size, c)
  return np.rint(blocks.mean(axis=(-4, -2), dtype=np.float32)).astype(np.uint8)


def render_many(
  spec: WorldSpec,
  *,
  seed: int,
  split: str = "train",
  indices: Sequence[int],
  size: int | None = None,
  frames: int | None = None,
) -> dict[str, Any]:
  """Many clips at once, straight to arrays.

  Returns:
    "video" uint8 [n, t, h, w, 3], area-downsampled to `size` and thinned to `frames` where given;
    "captions", a list of n `Caption`; "clips", a list of n `Clip`.
  """
  clips = [sample_clip(spec, seed=seed, split=split, index=i) for i in indices]
  captions = [
    caption_clip(clip, spec, seed=seed, split=split, index=i)
    for clip, i in zip(clips, indices, strict=True)
  ]
  shape = (frames or spec.frames, size or spec.height, size or spec.width, 3)
  video = np.empty((len(clips), *shape), np.uint8)
  for i, clip in enumerate(clips):
    full = render(clip, spec)
    video[i] = area_downsample(full, size=shape[1], frames=shape[0]) if size or frames else full
  return {"video": video, "captions": captions, "clips": clips}

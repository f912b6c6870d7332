"""The ShapesWorld probe: reads back from pixels what a clip shows, and judges it by a prompt.

Analysis by synthesis with plain image processing, no training. The background is the one of the
world's that explains most pixels. What differs from it is explained as a mixture of the background
and one of the world's colours; that gives the colour and, per pixel, how much of it the figure
covers. The centre of the cover in each frame is compared with the paths that the world allows, and
the cover itself with each shape drawn at those centres in several sizes. Nothing is read from how a
clip was made; blur, noise and colours that are somewhat off change little.

Clips: [t, h, w, 3], t >= 8, sides >= 16, bytes or floats in [-1, 1].
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidgen.shapes_world.render import background, distance
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  COLOURS,
  DIRECTIONS,
  HOP_HEIGHT,
  HOPS,
  SHAPES,
  SIZES,
  SPEEDS,
)

VERSION = 1
ASKED = ("shape", "colour", "motion", "background")  # "all" means these four
EXTRA = ("size", "speed", "count")
SIDE = 32  # larger frames are averaged down to about this before reading
FRAMES = 8  # this many frames, spread evenly, are enough to tell a shape
BACKGROUND_TOLERANCE = 60.0  # a pixel further than this from a background is not explained by it
BRIGHTNESS_TOLERANCE = 30.0  # by which all of a background may be too dark or too bright
GAINS = (0.6, 1.2)  # within these, a colour may be paler or stronger than the world's
SECOND_FIGURE = 0.03  # the part of the frame a second colour must cover to count as a figure
WINDOW = 0.33  # cover further than this from a figure's centre is not part of it
# Sides of the drawings that are compared; the one that fits best reads as the size nearest to it.
SIDES = (0.38, 0.42, 0.46, 0.54, 0.58, 0.62)
BLURS = (0.0, 0.8)  # standard deviations in pixels, 0 is sharp: drawings are compared with both
STRIPE_CONTRASTS = (1.0, 0.6)  # stripes of at least half the lower one read as such


@dataclasses.dataclass(frozen=True)
class Found:
  """One figure as read. `cover`: its share of the frame; `track`: its centre in each frame."""

  shape: str
  colour: str
  motion: str
  size: str
  speed: str | None
  cover: float
  track: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a clip shows; `figures` from top to bottom, empty when nothing but background is seen."""

  background: str
  figures: tuple[Found, ...]

  def attributes(self) -> dict[str, Any]:
    """The reading in the form of `shapes_world.attributes`."""
    names = ("shape", "colour", "motion", "size", "speed")
    facts = [{name: getattr(f, name) for name in names} for f in self.figures]
    first: dict[str, Any] = facts[0] if facts else dict.fromkeys(names)
    more = {"second": facts[1]} if len(facts) == 2 else {}
    return {**first, "background": self.background, "count": len(facts), **more}


def read_clip(video: np.ndarray, *, fps: float) -> Reading:
  """Reads one clip.

  Raises:
    ValueError: fewer than 8 frames or sides below 16.
  """
  if video.ndim != 4 or len(video) < 8 or min(video.shape[1:3]) < 16 or video.shape[3] != 3:
    raise ValueError(f"clip of shape {video.shape}: needs [t >= 8, h >= 16, w >= 16, 3]")
  video = shrink(to_bytes_scale(video))
  name, empty = read_background(video)
  contrast = video - empty
  directions = {c: np.array(rgb, np.float32) - empty for c, rgb in COLOURS.items()}
  shares = _colour_shares(contrast, directions)
  ranked = sorted(shares, key=lambda c: -shares[c])
  present = [c for k, c in enumerate(ranked[:2]) if shares[c] > (SECOND_FIGURE if k else 0.01)]
  if not present:
    return Reading(name, ())
  covers = _covers(contrast, {c: directions[c] for c in present})
  figures = [_read_figure(c, covers[c], fps=fps) for c in present]
  found = sorted((f for f in figures if f is not None), key=lambda f: f.track[:, 1].mean())
  return Reading(name, tuple(found))


def to_bytes_scale(video: np.ndarray) -> np.ndarray:
  """Bytes, or floats in [-1, 1], as float32 from 0 to 255."""
  if video.dtype == np.uint8:
    return video.astype(np.float32)
  return np.clip(np.nan_to_num(video.astype(np.float32)) * 127.5 + 127.5, 0, 255)


def shrink(video: np.ndarray) -> np.ndarray:
  """Averages blocks of pixels where both sides are multiples of a block that leaves >= 32."""
  t, h, w, c = video.shape
  block = next(k for k in range(max(min(h, w) // SIDE, 1), 0, -1) if h % k == 0 and w % k == 0)
  if block == 1:
    return video
  return video.reshape(t, h // block, block, w // block, block, c).mean(axis=(2, 4))


def read_background(video: np.ndarray) -> tuple[str, np.ndarray]:
  """The world's background that leaves least unexplained, and its pixels as seen [h, w, 3]."""
  height, width = video.shape[1:3]
  best, least, seen = "", np.inf, video[0]
  for name in BACKGROUNDS:
    full = background(name, height=height, width=width)
    mean = full.mean(axis=0, keepdims=True)
    for contrast in STRIPE_CONTRASTS if full.std(axis=0).any() else (1.0,):
      empty = mean + contrast * (full - mean)
      # A generated background may be somewhat too dark or too bright everywhere.
      shift = np.clip(np.median(video - empty), -BRIGHTNESS_TOLERANCE, BRIGHTNESS_TOLERANCE)
      error = video - (empty + shift)
      distances = np.sqrt(np.einsum("thwc,thwc->thw", error, error))
      cost = np.minimum(distances, BACKGROUND_TOLERANCE).mean()
      if cost < least:
        best, least, seen = name, cost, empty + shift
  return best, seen


def _mixture(contrast: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The share of a colour in each pixel, [t, h, w], and the squared error of the mixture."""
  length = np.einsum("hwc,hwc->hw", direction, direction)
  share = np.clip(np.einsum("thwc,hwc->thw", contrast, direction) / length, 0, GAINS[1])
  rest = contrast - share[..., None] * direction
  return share, np.einsum("thwc,thwc->thw", rest, rest)


def _colour_shares(contrast: np.ndarray, directions: Mapping[str, np.ndarray]) -> dict[str, float]:
  """The part of all pixels that each colour explains best; faint pixels say nothing."""
  mixtures = [_mixture(contrast, d) for d in directions.values()]
  best = np.argmin([error for _, error in mixtures], axis=0)
  return {
    c: float(np.where((best == k) & (share > 0.4), share, 0).mean())
    for k, (c, (share, _)) in enumerate(zip(directions, mixtures, strict=True))
  }


def _covers(contrast: np.ndarray, directions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """How much of each pixel each figure covers, [t, h, w]; a pixel belongs to one figure."""
  mixtures = {c: _mixture(contrast, d) for c, d in directions.items()}
  least = np.min([error for _, error in mixtures.values()], axis=0)
  return {c: np.where(error <= least, share, 0) for c, (share, error) in mixtures.items()}


def _read_figure(colour: str, cover: np.ndarray, *, fps: float) -> Found | None:
  track, weight = _track(cover)
  if not weight.any():
    return None
  motion, speed = read_motion(track, weight, fps=fps)
  shape, side = _read_shape(cover, track)
  size = min(SIZES, key=lambda name: abs(SIZES[name] - side))
  return Found(shape, colour, motion, size, speed, float(cover.mean()), track)


def _track(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The centre of mass in each frame, [t, 2] as (x, y) in the unit square, and the mass [t]."""
  _, height, width = cover.shape
  x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
  solid = np.where(cover > 0.25, cover, 0)
  track = np.full((len(cover), 2), 0.5)
  window = np.ones_like(cover)
  for _ in range(3):
    mass = solid * window
    total = mass.sum(axis=(1, 2))
    safe = np.maximum(total, 1e-6)
    track[:, 0] = (mass.sum(axis=1) @ x) / safe
    track[:, 1] = (mass.sum(axis=2) @ y) / safe
    dx, dy = x[None, :] - track[:, :1], y[None, :] - track[:, 1:]
    window = (np.abs(dx) < WINDOW)[:, None, :] & (np.abs(dy) < WINDOW)[:, :, None]
  return track, np.where(total > 0.01 * height * width, total / (height * width), 0)


def read_motion(track: np.ndarray, weight: np.ndarray, *, fps: float) -> tuple[str, str | None]:
  """The motion and the speed whose path, freely shifted, is nearest to a track [t, 2]."""
  names, paths = _paths(len(track), fps)
  share = weight / weight.sum()
  error = track - paths
  error = error - np.einsum("t,kti->ki", share, error)[:, None]
  return names[int(np.argmin(np.einsum("t,kti->k", share, error**2)))]


@functools.cache
def _paths(frames: int, fps: float) -> tuple[list[tuple[str, str | None]], np.ndarray]:
  """The paths the world allows, [k, t, 2], but for a shift; and the motion and speed of each."""
  times = np.arange(frames) / fps
  names: list[tuple[str, str | None]] = [("still", None)]
  paths = [np.zeros((frames, 2))]
  for motion, direction in DIRECTIONS.items():
    for speed, value in SPEEDS.items():
      names.append((motion, speed))
      paths.append(np.outer(times * value, direction))
  for speed, hops in HOPS.items():
    for phase in np.arange(32) / 32:
      names.append(("bouncing", speed))
      height = HOP_HEIGHT * np.abs(np.sin(np.pi * (hops * times + phase)))
      paths.append(np.stack([np.zeros(frames), -height], axis=-1))
  return names, np.stack(paths)


def _read_shape(cover: np.ndarray, track: np.ndarray) -> tuple[str, float]:
  """The shape, and the side of its box, whose drawing at the track is nearest to the cover."""
  frames, height, width = cover.shape
  chosen = np.linspace(0, frames - 1, min(frames, FRAMES)).round().astype(int)
  cover, track = cover[chosen].astype(np.float32), track[chosen]
  unit = min(height, width)
  # From a figure's centre of mass to each pixel, in pixels.
  dx = (np.arange(width) + 0.5 - track[:, :1] * width).astype(np.float32)[:, None, :]
  dy = (np.arange(height) + 0.5 - track[:, 1:] * height).astype(np.float32)[:, :, None]
  seen = np.where((np.abs(dx) < WINDOW * unit) & (np.abs(dy) < WINDOW * unit), cover, 0)
  errors = {}
  for shape in SHAPES:
    for side in SIDES:
      radius = side / 2 * unit
      # A triangle's centre of mass lies a third of its radius below the centre of its box.
      drop = np.float32(radius / 3 if shape == "triangle" else 0)
      drawn = np.clip(0.5 - distance(shape, dx, dy + drop, radius), 0, 1)
      for blur in BLURS:
        image = _blur(height, blur) @ drawn @ _blur(width, blur).T if blur else drawn
        gain = np.clip(np.vdot(seen, image) / np.vdot(image, image), *GAINS)
        rest = seen - np.float32(gain) * image
        error = float(np.vdot(rest, rest))
        errors[shape, side] = min(error, errors.get((shape, side), np.inf))
  return min(errors, key=lambda key: errors[key])


@functools.cache
def _blur(size: int, deviation: float) -> np.ndarray:
  """The matrix [size, size] that blurs along one axis, as if edge pixels went on outside."""
  at = np.arange(size, dtype=np.float32)
  weights = np.exp(-(((at[:, None] - at) / deviation) ** 2) / 2)
  return weights / weights.sum(axis=1, keepdims=True)


def asked_of(wanted: Mapping[str, Any]) -> tuple[str, ...]:
  """The attributes that a caption with these asks for; None says that it leaves one open.

  Speed is asked for where a figure has one; standing still has none.
  """
  figures = [wanted, wanted["second"]] if wanted.get("second") else [wanted]
  names = [name for name in ("shape", "colour", "motion", "size") if wanted.get(name) is not None]
  told = wanted.get("speed") is not None or wanted.get("motion") == "still"
  if told and any(figure.get("speed") is not None for figure in figures):
    names.append("speed")
  names.append("background")
  return (*names, "count") if wanted.get("count") is not None else tuple(names)


def judge(reading: Reading, wanted: Mapping[str, Any]) -> dict[str, bool]:
  """Whether each wanted attribute is what was read; attributes that are None are left out.

  One wanted figure is compared with the one that covers most; two with the upper and the lower.
  """
  figures = [wanted, wanted["second"]] if wanted.get("second") else [wanted]
  found = list(reading.figures)
  if len(figures) == 1:
    found = sorted(found, key=lambda f: -f.cover)[:1]
  right = {}
  for name in asked_of(wanted):
    if name == "background":
      right[name] = reading.background == wanted["background"]
    elif name == "count":
      right[name] = len(reading.figures) == wanted["count"]
    else:
      right[name] = len(found) == len(figures) and all(
        getattr(f, name) == w.get(name) for f, w in zip(found, figures, strict=True)
      )
  right["all"] = all(right.get(name, True) for name in ASKED)
  return right

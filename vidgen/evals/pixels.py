"""How far a clip is from another, pixel by pixel: PSNR, SSIM, L1 and L2, flicker, seams.

Clips are [t, h, w, c], uint8 or float, and both the same; an image is a clip of one frame. `peak`
is the distance from black to white: 255 for bytes, 1 for [0, 1], 2 for [-1, 1]. All is computed in
float64; a score of many clips is the mean of theirs.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Num

from vidgen.errors import DataError

Clip = Num[np.ndarray, "_ _ _ _"]  # of any two, whose difference in shape is an error of the data
Exact = Literal["inf", "cap", "skip"]
Channels = Literal["mean", "gray"]
GRAY = (0.2125, 0.7154, 0.0721)  # of R, G and B, as in scikit-image and MAGVIT
RADIUS, SIGMA = 5, 1.5  # of SSIM's window, in pixels
K1, K2 = 0.01, 0.03


def psnr(a: Clip, b: Clip, *, peak: int | float, exact: Exact = "inf", cap: float = 100.0) -> float:
  """Peak signal-to-noise ratio in dB: of each frame, then the mean over frames.

  A frame without any error has no finite ratio: "inf" lets it make the mean infinite, "cap" counts
  it as `cap` dB (and only it), "skip" leaves it out, and gives NaN where no frame is left.
  """
  return psnr_of_errors(frame_errors(a, b), peak=peak, exact=exact, cap=cap)


def psnr_of_errors(
  errors: Sequence[float] | np.ndarray, *, peak: int | float, exact: Exact = "inf",
  cap: float = 100.0,
) -> float:  # fmt: skip
  """As `psnr`, from the mean squared error of each frame."""
  found = [10 * math.log10(peak**2 / error) for error in errors if error]
  perfect = len(errors) - len(found)
  if exact != "skip":
    found += [math.inf if exact == "inf" else cap] * perfect
  return math.fsum(found) / len(found) if found else math.nan


def psnr_of_mean_error(a: Clip, b: Clip, *, peak: int | float) -> float:
  """The PSNR of the squared error of all frames together: never above `psnr`; inf without error."""
  error = float(np.mean(frame_errors(a, b)))
  return 10 * math.log10(peak**2 / error) if error else math.inf


def frame_errors(a: Clip, b: Clip) -> Float[np.ndarray, "t"]:
  """The mean squared error of each frame.

  Raises:
    DataError: clips of different shapes or dtypes, an empty one, or values that are not finite.
  """
  return np.array([np.mean(np.square(x - y)) for x, y in _frames(a, b)])


def l1(a: Clip, b: Clip, *, peak: int | float) -> float:
  """The mean absolute error, over `peak`; in [0, 1]."""
  return float(np.mean([np.mean(np.abs(x - y)) for x, y in _frames(a, b)])) / peak


def l2(a: Clip, b: Clip, *, peak: int | float) -> float:
  """The mean squared error, over `peak` squared; in [0, 1]. MagicBrush calls it so."""
  return float(np.mean(frame_errors(a, b))) / peak**2


def ssim(
  a: Clip,
  b: Clip,
  *,
  peak: int | float,
  channels: Channels = "mean",
  border: Literal["valid", "reflect"] = "valid",
) -> float:
  """Structural similarity of each frame, then the mean over frames; 1 for equal ones.

  The window is a Gaussian of 11 pixels, sigma 1.5, with K1 0.01 and K2 0.03 and no correction of
  the variances. "mean" is over the channels, as in TensorFlow, scikit-image and torchmetrics;
  "gray" first makes RGB gray, as MAGVIT does. "valid" counts only windows that are whole, "reflect"
  mirrors frames at their border, as torchmetrics does.

  Raises:
    DataError: as `frame_errors`; frames smaller than the window, or gray of what is not RGB.
  """
  if min(a.shape[1:3]) < 2 * RADIUS + 1:
    raise DataError(f"SSIM needs frames of 11x11 pixels or more, not {a.shape[1]}x{a.shape[2]}")
  if channels == "gray" and a.shape[3] != 3:
    raise DataError(f"only RGB is made gray, and there are {a.shape[3]} channels")
  scores = []
  for x, y in _frames(a, b):
    if channels == "gray":
      x, y = (np.tensordot(z, GRAY, axes=1)[..., None] for z in (x, y))
    if border == "reflect":
      margin = [(RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)]
      x, y = (np.pad(z, margin, mode="reflect") for z in (x, y))
    planes = zip(np.moveaxis(x, 2, 0), np.moveaxis(y, 2, 0), strict=True)
    scores.append(np.mean([_similarity(p, q, peak) for p, q in planes]))
  return float(np.mean(scores))


def frame_difference(clip: Clip, *, peak: int | float) -> float:
  """The mean absolute difference of consecutive frames, over `peak`.

  1 less this is VBench's temporal flickering, which is meant for clips that show no motion.

  Raises:
    DataError: fewer than two frames.
  """
  if len(clip) < 2:
    raise DataError("a clip of one frame has no difference of frames")
  pairs = zip(clip[:-1], clip[1:], strict=True)
  steps = [np.mean(np.abs(x.astype(np.float64) - y)) for x, y in pairs]
  return float(np.mean(steps)) / peak


def error_flicker(a: Clip, b: Clip, *, peak: int | float) -> float:
  """The mean absolute change of b - a from frame to frame, over `peak`; 0 for a steady error.

  Raises:
    DataError: as `frame_errors`, or fewer than two frames.
  """
  if len(a) < 2:
    raise DataError("a clip of one frame does not flicker")
  errors = (y - x for x, y in _frames(a, b))
  steps, before = [], next(errors)
  for error in errors:
    steps.append(np.mean(np.abs(error - before)))
    before = error
  return float(np.mean(steps)) / peak


def seam_error(
  a: Clip, b: Clip, *, axis: Literal["t", "h", "w"], seams: Sequence[Any], peak: int | float
) -> dict[str, float]:
  """How much more b - a jumps at the seams of tiles than between other neighbours.

  `seams` are the indices at which a tile begins. "at_seams" and "elsewhere" are mean absolute steps
  of the error along `axis`, over `peak`; their difference, "excess", is about 0 without seams.

  Raises:
    DataError: as `frame_errors`; no seam, one outside the clip, or nothing but seams.
  """
  error = np.stack([y - x for x, y in _frames(a, b)])
  dimension = "thw".index(axis)
  steps = np.abs(np.diff(error, axis=dimension)).mean(axis=tuple({0, 1, 2, 3} - {dimension}))
  at = np.zeros(len(steps), bool)
  for seam in seams:
    if not 0 < seam <= len(steps):
      raise DataError(f"a tile that begins at {seam} of {len(steps) + 1} has no seam")
    at[seam - 1] = True
  if at.all() or not at.any():
    raise DataError(f"{at.sum()} seams among {len(at)} places leave nothing to compare")
  found, other = float(steps[at].mean()) / peak, float(steps[~at].mean()) / peak
  return {"at_seams": found, "elsewhere": other, "excess": found - other}


def _frames(a: np.ndarray, b: np.ndarray):
  """Pairs of frames in float64; one at a time, as a clip may be long."""
  if a.shape != b.shape or a.dtype != b.dtype:
    got = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    raise DataError(f"only clips of one shape and dtype are compared, not {got}")
  if not a.size:
    raise DataError("a clip without a pixel")
  if not np.isfinite(a).all() or not np.isfinite(b).all():
    raise DataError("a clip holds values that are not finite")
  return ((x.astype(np.float64), y.astype(np.float64)) for x, y in zip(a, b, strict=True))


@functools.cache
def _window() -> np.ndarray:
  weights = np.exp(-0.5 * np.square(np.arange(-RADIUS, RADIUS + 1) / SIGMA))
  return weights / weights.sum()


def _blurred(x: np.ndarray) -> np.ndarray:
  """[h, w] -> [h - 10, w - 10]."""
  for _ in range(2):
    length = x.shape[0] - 2 * RADIUS
    parts = (weight * x[i : i + length] for i, weight in enumerate(_window()))
    x = sum(parts, np.zeros(())).T
  return x


def _similarity(x: np.ndarray, y: np.ndarray, peak: int | float) -> float:
  """Of two planes."""
  mean_x, mean_y = _blurred(x), _blurred(y)
  # Rounding may leave a variance just below 0.
  variance_x = np.maximum(_blurred(x * x) - mean_x**2, 0)
  variance_y = np.maximum(_blurred(y * y) - mean_y**2, 0)
  covariance = _blurred(x * y) - mean_x * mean_y
  c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
  light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
  return float(np.mean(light * structure))

"""Who is in a ShapesWorld clip: the emblem read back from pixels, compared with portraits.

Where the emblem is, is seen by what differs from the background. Given that place, each pixel is a
known mixture of the emblem's 5 x 5 cells, so the colours of the cells follow from all frames by
least squares; the place is refined by the smallest error. Two emblems are as far apart as the
colours of their cells.
"""

from collections.abc import Sequence

import numpy as np

from vidgen.evals.shapes_probe import read_background, shrink, to_bytes_scale
from vidgen.shapes_world.emblem import CELLS, overlap
from vidgen.shapes_world.identity import PORTRAIT_SIZE
from vidgen.shapes_world.world import SIZES

CONTRAST = 50.0  # what differs more than this from the background belongs to the emblem
SHIFTS = np.arange(-3, 4) * 0.25  # pixels by which the place is refined
SAME = 13.0  # of 255; after MP4 a person is within 11.3 of the portrait, strangers begin at 14


def read_cells(video: np.ndarray, *, side: float = SIZES["large"]) -> np.ndarray:
  """The colours of the cells [5, 5, 3], 0 to 255, of the emblem that moves through a clip.

  `side`: of the emblem, as a part of the frame.
  """
  video = shrink(to_bytes_scale(video))
  _, empty = read_background(video)
  unit = min(video.shape[1:3])
  mask = np.sqrt(((video - empty) ** 2).sum(axis=-1)) > CONTRAST
  weight = np.maximum(mask.sum(axis=(1, 2)), 1)
  x = (mask.sum(axis=1) @ (np.arange(video.shape[2]) + 0.5)) / weight
  y = (mask.sum(axis=2) @ (np.arange(video.shape[1]) + 0.5)) / weight
  radius = side * unit / 2

  def error(dx: float, dy: float) -> float:
    return _fit(video, empty, x + dx, y + dy, radius=radius)[0]

  dx = min(SHIFTS, key=lambda dx: error(dx, 0.0))
  dy = min(SHIFTS, key=lambda dy: error(dx, dy))
  cells = _fit(video, empty, x + dx, y + dy, radius=radius)[1]
  return np.clip((cells + cells[:, ::-1]) / 2, 0, 255)  # emblems are their own mirror image


def _fit(
  video: np.ndarray, empty: np.ndarray, x: np.ndarray, y: np.ndarray, *, radius: float
) -> tuple[float, np.ndarray]:
  """The squared error and the cells [5, 5, 3] of the best fit with the emblem at pixels (x, y)."""
  _, height, width, _ = video.shape
  rows = overlap((np.arange(height) + 0.5 - y[:, None]).astype(np.float32), radius)
  columns = overlap((np.arange(width) + 0.5 - x[:, None]).astype(np.float32), radius)
  share = rows.sum(axis=2)[:, :, None] * columns.sum(axis=2)[:, None, :]
  seen = video - (1 - share)[..., None] * empty
  # Normal equations; the product of overlaps makes them small: 25 unknowns, whatever the frame.
  products = np.einsum("thi,thj->tij", rows, rows), np.einsum("twi,twj->tij", columns, columns)
  normal = np.einsum("tij,tkl->ikjl", *products).reshape(CELLS**2, CELLS**2)
  partly = np.einsum("thi,thwc->tiwc", rows, seen)
  right = np.einsum("tiwc,twk->ikc", partly, columns).reshape(CELLS**2, 3)
  cells = np.linalg.solve(normal + 1e-2 * np.eye(CELLS**2), right)
  error = float(np.vdot(seen, seen) - np.vdot(cells, right))
  return error, cells.reshape(CELLS, CELLS, 3)


def read_portrait(picture: np.ndarray) -> np.ndarray:
  """The colours of the cells [5, 5, 3] in a portrait [h, w, 3]."""
  return read_cells(picture[None], side=PORTRAIT_SIZE)


def distances(video: np.ndarray, portraits: Sequence[np.ndarray]) -> np.ndarray:
  """The mean difference, 0 to 255, of the cells of a clip's person and of each portrait, [n]."""
  cells = read_cells(video)
  return np.array([np.abs(cells - read_portrait(p)).mean() for p in portraits])


def identify(video: np.ndarray, portraits: Sequence[np.ndarray]) -> int | None:
  """Which portrait shows the person of the clip; None where none is near enough."""
  far = distances(video, portraits)
  best = int(np.argmin(far))
  return best if far[best] < SAME else None

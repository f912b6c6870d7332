"""Emblems: small drawn tiles, each from a number, that stand for persons (`identity`).

The number encodes 5 x 5 cells, mirrored left to right, and the two colours of the full and of the
empty ones.
"""

import numpy as np
from jaxtyping import Float

from vidgen.shapes_world.world import COLOURS, SPLITS

CELLS = 5
FREE = CELLS * ((CELLS + 1) // 2)  # cells that the mirror leaves free
PALETTE = tuple(COLOURS.values())
PAIRS = tuple((a, b) for a in range(len(PALETTE)) for b in range(len(PALETTE)) if a != b)


def sample_emblem(rng: np.random.Generator, *, split: str) -> int:
  """Draws an emblem, neither nearly empty nor nearly full; every eighth pattern is held out."""
  held = SPLITS.index(split) == 1
  while True:
    bits = int(rng.integers(2**FREE))
    if 5 <= bits.bit_count() <= FREE - 5 and (bits % 8 == 0) == held:
      return bits * len(PAIRS) + int(rng.integers(len(PAIRS)))


def pattern(emblem: int) -> Float[np.ndarray, "5 5"]:
  """1 where a cell is full; rows from the top."""
  bits = emblem // len(PAIRS)
  half = np.array([bits >> k & 1 for k in range(FREE)], np.float32).reshape(CELLS, -1)
  return np.concatenate([half, half[:, -2::-1]], axis=1)


def palette(emblem: int) -> Float[np.ndarray, "2 3"]:
  """The colours of the full and of the empty cells, 0 to 255."""
  return np.array([PALETTE[k] for k in PAIRS[emblem % len(PAIRS)]], np.float32)


def draw(
  emblem: int,
  dx: Float[np.ndarray, "1 w"],
  dy: Float[np.ndarray, "h 1"],
  radius: float,
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
  """The share of each pixel that the tile covers, and its mean colour there.

  `dx`, `dy`: pixels from the tile's centre; `radius`: half its side in pixels. Cells and edges are
  anti-aliased exactly, as the overlap of two rectangles is a product.
  """
  rows, columns = overlap(dy[:, 0], radius), overlap(dx[0], radius)
  full = rows @ pattern(emblem) @ columns.T
  share = rows.sum(axis=1)[:, None] * columns.sum(axis=1)[None, :]
  part = (full / np.maximum(share, 1e-6))[..., None]
  first, second = palette(emblem)
  return share, second + (first - second) * part


def overlap(centre: Float[np.ndarray, "*n"], radius: float) -> Float[np.ndarray, "*n 5"]:
  """How much of each pixel (of side 1, at `centre`) lies in each row or column of cells."""
  edges = np.linspace(-radius, radius, CELLS + 1, dtype=np.float32)
  low = np.maximum(centre[..., None] - 0.5, edges[:-1])
  high = np.minimum(centre[..., None] + 0.5, edges[1:])
  return np.maximum(high - low, 0.0).astype(np.float32)

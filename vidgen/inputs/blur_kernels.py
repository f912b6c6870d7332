"""Kernels of blurs, as Real-ESRGAN draws them (Wang et al., 2021, sections 3.1 and 3.3)."""

import math

import numpy as np
from jaxtyping import Float

_ANGLES = 256  # of an integral that is exact to float32 for arguments below that


def bell(
  size: int, *, sigmas: tuple[float, float], angle: float, exponent: float, plateau: bool
) -> Float[np.ndarray, "k k"]:
  """A blur kernel that sums to 1, from q = d' inverse(covariance) d of the place d.

  exp(-q^exponent / 2), a Gaussian at exponent 1; with `plateau` 1 / (1 + q^exponent).
  """
  place = np.arange(size) - size // 2
  y, x = np.meshgrid(place, place, indexing="ij")
  along = (np.cos(angle) * x + np.sin(angle) * y) / sigmas[0]
  across = (np.cos(angle) * y - np.sin(angle) * x) / sigmas[1]
  q = (along**2 + across**2) ** exponent
  kernel = 1 / (1 + q) if plateau else np.exp(-q / 2)
  return kernel / kernel.sum()


def sinc(size: int, *, cutoff: float) -> Float[np.ndarray, "k k"]:
  """A kernel that sums to 1 and passes what turns by less than `cutoff` radians a pixel.

  It is cut off by its size, and so rings.
  """
  place = np.arange(size) - size // 2
  r = np.hypot(*np.meshgrid(place, place))
  angles = (np.arange(_ANGLES) + 0.5) * math.pi / _ANGLES
  # The Bessel function of order 1, by its integral.
  bessel = np.cos(angles - cutoff * r[..., None] * np.sin(angles)).mean(axis=-1)
  middle = r == 0
  kernel = cutoff * bessel / (2 * math.pi * np.where(middle, 1, r))
  kernel[middle] = cutoff**2 / (4 * math.pi)
  return kernel / kernel.sum()

"""The Frechet distance between two sets of features: what FVD, FID, FAD and their kin are."""

import numpy as np
from jaxtyping import Float

from vidgen.evals.moments import Divisor, Moments


def frechet_distance(a: Moments, b: Moments, *, divisor: Divisor = "n-1") -> float:
  """|mean a - mean b|^2 + Tr(A + B - 2 (A B)^(1/2)), A and B the covariances over `divisor`.

  It is 0 for equal sets up to rounding, which may leave it negative. Sets smaller than the width
  of the features, whose covariances have no full rank, are treated exactly. "n" is the divisor of
  StyleGAN-V and cd-fvd, "n-1" that of most others.

  Raises:
    ValueError: features of different widths.
    DataError: a set of fewer than two samples.
  """
  if a.width != b.width:
    raise ValueError(f"features of widths {a.width} and {b.width} have no distance")
  return gaussian_distance(
    a.mean(), a.covariance(divisor=divisor), b.mean(), b.covariance(divisor=divisor)
  )


def gaussian_distance(
  mean_a: Float[np.ndarray, "d"],
  covariance_a: Float[np.ndarray, "d d"],
  mean_b: Float[np.ndarray, "d"],
  covariance_b: Float[np.ndarray, "d d"],
) -> float:
  """The same between two normal distributions, float64."""
  # With A = F F^T and B = G G^T the trace of the root is the sum of singular values of F^T G. No
  # root is taken of what rounding leaves in place of a zero, which would be 1e-8 and not 1e-16.
  root = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False).sum()
  distance = mean_a - mean_b
  return float(distance @ distance + np.trace(covariance_a) + np.trace(covariance_b) - 2 * root)


def _factor(covariance: np.ndarray) -> np.ndarray:
  """[d, rank] F with F F^T the covariance; directions in which there is rounding only are left."""
  values, vectors = np.linalg.eigh(covariance)
  real = values > values[-1] * len(values) * np.finfo(np.float64).eps
  return vectors[:, real] * np.sqrt(values[real])

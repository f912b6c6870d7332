"""Squared maximum mean discrepancy (MMD) with a polynomial kernel: KID, KVD and JEDi.

Features are whole sets, in the order of the samples: kernels see pairs, so no sums stand for them.
Nothing here is clamped: the unbiased estimate of two equal distributions is negative half the time.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError

BLOCK = 1024  # rows of a kernel matrix that are made at a time
Estimator = Literal["unbiased", "biased"]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """(gamma x.y + coef0)^degree, gamma 1/d where none is given; the default is KID's and KVD's."""

  degree: int = 3
  gamma: float | None = None
  coef0: float = 1.0

  def __call__(
    self, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
  ) -> Float[np.ndarray, "n m"]:
    """The kernel of every pair."""
    gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
    base = gamma * (x @ y.T) + self.coef0
    value = base.copy()
    for _ in range(self.degree - 1):  # several times as fast as NumPy's power
      value *= base
    return value


JEDI = Kernel(degree=2, coef0=0.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Mean and standard deviation (of n) over subsets, and the value of each."""

  mean: float
  std: float
  values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A value, and the bounds within which it lies with `confidence`."""

  value: float
  low: float
  high: float
  confidence: float


def mmd2(
  x: Float[np.ndarray, "n d"],
  y: Float[np.ndarray, "m d"],
  *,
  kernel: Kernel = Kernel(),  # noqa: B008 (frozen)
  estimator: Estimator = "unbiased",
) -> float:
  """Of two whole sets, which may differ in size; "unbiased" leaves out pairs of one with itself.

  Raises:
    DataError: fewer than two samples in a set.
  """
  x, y = _sets(x, y, least=2)
  within = [_within(z, kernel, estimator) for z in (x, y)]
  across = sum(kernel(rows, y).sum() for rows in _blocks(x)) / (len(x) * len(y))
  return float(within[0] + within[1] - 2 * across)


def jedi(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
  """100 times the biased estimate with degree 2 and no constant, as JEDi prints it."""
  return 100 * mmd2(x, y, kernel=JEDI, estimator="biased")


def subset_mmd2(
  x: Float[np.ndarray, "n d"],
  y: Float[np.ndarray, "m d"],
  *,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 2020,
  kernel: Kernel = Kernel(),  # noqa: B008 (frozen)
  estimator: Estimator = "unbiased",
) -> Estimate:
  """Over random subsets, drawn as torch-fidelity draws them for KID.

  Raises:
    DataError: fewer samples than `size`.
  """
  x, y = _sets(x, y, least=max(size, 2))
  random = np.random.RandomState(seed)
  values = []
  for _ in range(subsets):
    chosen = x[random.choice(len(x), size, replace=False)]
    others = y[random.choice(len(y), size, replace=False)]
    values.append(mmd2(chosen, others, kernel=kernel, estimator=estimator))
  return Estimate(float(np.mean(values)), float(np.std(values)), tuple(values))


def bootstrap_mmd2(
  x: Float[np.ndarray, "n d"],
  y: Float[np.ndarray, "m d"],
  *,
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
  kernel: Kernel = Kernel(),  # noqa: B008 (frozen)
) -> Interval:
  """The unbiased estimate of the whole sets, and percentiles of it over resampled sets.

  A sample that was drawn twice makes no pair with itself: that would bias the resamples upwards.
  Resamples of one sample over and over, which tiny sets have, are left out.
  """
  x, y = _sets(x, y, least=2)
  random = np.random.Generator(np.random.PCG64(seed))
  times = [
    random.multinomial(len(z), np.full(len(z), 1 / len(z)), size=resamples).astype(np.float64)
    for z in (x, y)
  ]
  several = np.all([np.count_nonzero(weights, axis=1) > 1 for weights in times], axis=0)
  times = [weights[several] for weights in times]
  values = np.zeros(np.count_nonzero(several))
  for z, weights in zip((x, y), times, strict=True):
    own = np.concatenate([np.diagonal(kernel(rows, rows)) for rows in _blocks(z)])
    pairs = _weighted(z, z, kernel, weights, weights) - weights**2 @ own
    values += pairs / (len(z) ** 2 - (weights**2).sum(axis=1))
  values -= 2 * _weighted(x, y, kernel, *times) / (len(x) * len(y))
  low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Interval(mmd2(x, y, kernel=kernel), float(low), float(high), confidence)


def _sets(x: np.ndarray, y: np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
  """Both in float64."""
  for z in (x, y):
    if len(z) < least:
      raise DataError(f"MMD needs {least} samples or more in each set, one has {len(z)}")
  return x.astype(np.float64), y.astype(np.float64)


def _blocks(x: np.ndarray) -> list[np.ndarray]:
  return [x[start : start + BLOCK] for start in range(0, len(x), BLOCK)]


def _within(x: np.ndarray, kernel: Kernel, estimator: Estimator) -> float:
  """The mean kernel of pairs of one set."""
  total, n = 0.0, len(x)
  for i, rows in enumerate(_blocks(x)):
    pairs = kernel(rows, x)
    total += pairs.sum()
    if estimator == "unbiased":
      total -= np.trace(pairs, offset=i * BLOCK)
  return total / (n * (n - 1) if estimator == "unbiased" else n * n)


def _weighted(x, y, kernel, left, right) -> np.ndarray:
  """sum_ij left[r, i] kernel(x_i, y_j) right[r, j] for every resample r."""
  total = np.zeros(len(left))
  for i, rows in enumerate(_blocks(x)):
    pairs = left[:, i * BLOCK : i * BLOCK + len(rows)] @ kernel(rows, y)
    total += np.einsum("rj,rj->r", pairs, right)
  return total

"""Parity checks as data: a test runs them, and `tests/write_conformance.py` makes the table."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Pairs = Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One row: our module, the reference ("package==version, class"), the config compared.

  `run` returns pairs (ours, the reference's) by name; `tolerance` bounds the largest absolute
  difference of each, relative to the largest absolute value of the reference where that exceeds 1.
  """

  module: str
  reference: str
  config: str
  tolerance: float
  run: Callable[[], Pairs]


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The largest absolute difference, the same relative as in `Case`, and the least cosine."""

  absolute: float
  relative: float
  cosine: float


def measure(pairs: Pairs) -> Agreement:
  """How well ours and the reference's agree, over all pairs."""
  if not pairs:
    raise ValueError("nothing to compare")
  absolute, relative, cosine = 0.0, 0.0, 1.0
  for name, (ours, theirs) in pairs.items():
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
      raise AssertionError(f"{name}: shape {ours.shape}, the reference's is {theirs.shape}")
    if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
      raise AssertionError(f"{name}: not finite")
    difference = float(np.max(np.abs(ours - theirs), initial=0.0))
    largest = float(np.max(np.abs(theirs), initial=0.0))
    absolute = max(absolute, difference)
    relative = max(relative, difference / max(1.0, largest))
    lengths = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    if lengths:
      cosine = min(cosine, float(np.vdot(ours, theirs)) / lengths)
  return Agreement(absolute, relative, cosine)


def check(case: Case) -> None:
  """Fails, naming the largest difference, where a case is outside its tolerance."""
  got = measure(case.run())
  assert got.relative <= case.tolerance, f"{case.module} against {case.reference}: {got}"

"""Scores of sets of sounds: the Frechet audio distance, and the KL divergence of what a classifier
hears in a generated sound from what it hears in the real one of the same name.

Two published KL scores share a name and not a value: AudioGen's and audiocraft's is over a softmax
of the classes, AudioLDM's also over sigmoids, each class by itself. Here they are `form`s.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError
from vidgen.evals.frechet import frechet_distance
from vidgen.evals.moments import Moments

# Below it the covariance of VGGish's 128 values is of low rank or close to it. Our choice: eight
# windows for each value, 16 minutes of sound; no paper gives a least number.
MINIMUM_WINDOWS = 1024

Form = Literal["softmax", "sigmoid"]


def frechet_audio_distance(
  real: Moments, fake: Moments, *, minimum: int = MINIMUM_WINDOWS
) -> float:
  """The Frechet distance between the moments of VGGish embeddings of windows.

  Raises:
    DataError: either set has fewer than `minimum` windows.
  """
  for name, moments in (("real", real), ("generated", fake)):
    if moments.count < minimum:
      raise DataError(
        f"FAD over {moments.count} {name} windows of 0.96 s: below {minimum} it says little"
      )
  return frechet_distance(real, fake)


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Means over pairs, in nats; `forward` is KL(real || generated), the figure papers print."""

  forward: float
  reverse: float
  both: float
  count: int


@dataclasses.dataclass(frozen=True)
class SoundPairs:
  """Rows [n, classes] of the same sounds, in the order of `names`, and the names of one side."""

  names: tuple[str, ...]
  real: np.ndarray
  fake: np.ndarray
  missing: tuple[str, ...]


def paired(
  real: Mapping[str, np.ndarray],
  fake: Mapping[str, np.ndarray],
  *,
  missing: Literal["refuse", "count"] = "refuse",
) -> SoundPairs:
  """Rows of both sides by file name, sorted by it.

  Raises:
    DataError: no name is on both sides, or some are on one only and are to be refused; they are
      named.
  """
  names = sorted(real.keys() & fake.keys())
  lacking = tuple(sorted(real.keys() ^ fake.keys()))
  if not names:
    raise DataError("no generated sound has the file name of a real one: nothing to pair")
  if lacking and missing == "refuse":
    more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
    raise DataError(f"sounds without their pair: {', '.join(lacking[:8])}{more}")
  rows = [np.stack([side[name] for name in names]) for side in (real, fake)]
  return SoundPairs(tuple(names), real=rows[0], fake=rows[1], missing=lacking)


def kl_divergence(
  real: Float[np.ndarray, "n k"],
  fake: Float[np.ndarray, "n k"],
  *,
  form: Form = "softmax",
  epsilon: float = 1e-6,
) -> Divergence:
  """Mean KL of paired logits over n pairs; row i of both is of the same sound.

  `form`: "softmax", distributions over k classes (AudioGen, audiocraft); "sigmoid", the sum over
  classes of p log(p / q) of their probabilities alone, so it may be negative (AudioLDM). `epsilon`
  is added within the logarithm of the second argument only.

  Raises:
    DataError: there is no pair, or logits are not finite.
  """
  if not len(real):
    raise DataError("KL of no pairs")
  if not np.isfinite(real).all() or not np.isfinite(fake).all():
    raise DataError("KL of logits that are not finite")
  probabilities = {"softmax": _softmax, "sigmoid": _sigmoid}[form]
  p, q = probabilities(real.astype(np.float64)), probabilities(fake.astype(np.float64))
  forward, reverse = (float(np.mean(_kl(*sides, epsilon))) for sides in ((p, q), (q, p)))
  return Divergence(forward, reverse, forward + reverse, len(real))


def _kl(p: np.ndarray, q: np.ndarray, epsilon: float) -> np.ndarray:
  log_p = np.log(np.where(p > 0, p, 1))  # 0 log 0 is 0
  return np.sum(p * (log_p - np.log(q + epsilon)), axis=-1)


def _softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  e = np.exp(-np.abs(x))
  return np.where(x >= 0, 1 / (1 + e), e / (1 + e))

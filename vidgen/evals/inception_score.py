"""The Inception Score: exp of the mean divergence of a sample's classes from those of all."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError

# Who shuffles before splitting, and from which seed; both permute by NumPy's RandomState.
SEEDS = {"torch_fidelity": 2020, "stylegan_v": 42}
Shuffle = Literal["torch_fidelity", "stylegan_v", "none"]


@dataclasses.dataclass(frozen=True)
class InceptionScore:
  """Mean and standard deviation (of n) over splits, and the score of each."""

  mean: float
  std: float
  splits: tuple[float, ...]


def inception_score(
  logits: Float[np.ndarray, "n classes"],
  *,
  splits: int = 10,
  shuffle: Shuffle = "torch_fidelity",
  seed: int | None = None,
) -> InceptionScore:
  """exp(mean_x KL(p(y|x) || p(y))) in each split, between 1 and the number of classes; float64.

  `logits` are in the order of the samples. "torch_fidelity" is the rule for images, "stylegan_v"
  that for video with C3D; another `seed` than theirs may be given. Probabilities never are exact
  zeros, as their logarithms come from the logits.

  Raises:
    DataError: fewer samples than splits, or a logit that is not finite.
  """
  if len(logits) < splits or splits < 1:
    raise DataError(f"an Inception Score in {splits} splits needs more than {len(logits)} samples")
  if not np.isfinite(logits).all():
    raise DataError("logits of the Inception Score are not finite")
  logs = _log_softmax(logits.astype(np.float64))
  if shuffle != "none":
    random = np.random.RandomState(SEEDS[shuffle] if seed is None else seed)
    logs = logs[random.permutation(len(logs))]
  scores = []
  for i in range(splits):
    part = logs[i * len(logs) // splits : (i + 1) * len(logs) // splits]
    all_of_it = _log_mean_exp(part)
    divergence = np.sum(np.exp(part) * (part - all_of_it), axis=1)
    scores.append(float(np.exp(divergence.mean())))
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)), tuple(scores))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits - logits.max(axis=1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_mean_exp(logs: np.ndarray) -> np.ndarray:
  """log of the mean over rows of exp, finite where every exp is too small for a float."""
  largest = logs.max(axis=0)
  return largest + np.log(np.exp(logs - largest).mean(axis=0))

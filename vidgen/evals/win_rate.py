"""Which of two systems people prefer: net win rate with a bootstrap interval (Movie Gen)."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vidgen.errors import DataError

# One rater on one item: 1 for ours, -1 for the other's, 0 for a tie.
Votes = Mapping[str, Sequence[int]]
Rule = Literal["majority", "mean"]


@dataclasses.dataclass(frozen=True)
class WinRate:
  """Of items: how many were won, lost and tied, and rates in percent.

  net: wins less losses, in [-100, 100], with the bounds of its interval at `confidence`; its
  standard deviation over resampled items is `deviation`. win_rate is the other figure by that name,
  in [0, 100]: a tie is half a win. undecided: ties that are none by vote, as no choice had the
  majority.
  """

  net: float
  low: float
  high: float
  deviation: float
  win_rate: float
  wins: int
  losses: int
  ties: int
  undecided: int
  confidence: float


def win_rate(
  votes: Votes,
  *,
  rule: Rule = "majority",
  resamples: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
) -> WinRate:
  """Votes by item, some raters each. Items are resampled, raters are not.

  "majority": an item counts as what more than half of its raters say, otherwise as a tie (Movie
  Gen). "mean": it counts with the mean of its votes, and is won where that is above 0. The interval
  is the percentiles of `resamples` draws of as many items.

  Raises:
    DataError: no item, an item without votes, or a vote that is none of 1, 0, -1.
  """
  if not votes:
    raise DataError("no item was voted on")
  for item, given in votes.items():
    if not len(given) or not set(given) <= {-1, 0, 1}:
      raise DataError(f"item {item}: votes are {list(given)}, not some of 1, 0 and -1")
  items = sorted(votes)  # so that the order of the file does not matter
  decided = [majority(votes[item]) for item in items]
  if rule == "majority":
    outcomes = np.array([0 if d is None else d for d in decided], np.float64)
  else:
    outcomes = np.array([sum(votes[item]) / len(votes[item]) for item in items])
  random = np.random.Generator(np.random.PCG64(seed))
  drawn = [
    100 * outcomes[random.integers(len(outcomes), size=len(outcomes))].mean()
    for _ in range(resamples)
  ]
  low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
  net = 100 * float(outcomes.mean())
  return WinRate(
    net=net,
    low=float(low),
    high=float(high),
    deviation=float(np.std(drawn)),
    win_rate=50 + net / 2,
    wins=int(np.sum(outcomes > 0)),
    losses=int(np.sum(outcomes < 0)),
    ties=int(np.sum(outcomes == 0)),
    undecided=decided.count(None) if rule == "majority" else 0,
    confidence=confidence,
  )


def majority(votes: Sequence[int]) -> int | None:
  """What more than half of the raters say; None where there is no such thing."""
  vote, times = Counter(votes).most_common(1)[0]
  return int(vote) if 2 * times > len(votes) else None

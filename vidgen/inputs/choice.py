"""Which samples a bucket gets, by their length, frame rate, aspect ratio and size.

A sample is for every bucket of its subset whose bounds hold it; with a tolerance of aspect ratios,
of these only for those with the ratio nearest to its own. So lengths may overlap, ratios cannot.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vidgen.errors import DataError
from vidgen.inputs.clip_index import ClipIndex, load_clip_index
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Source

RATE_SLACK = 0.99  # 23.976 frames per second are 24


class NoBatch(DataError):
  """None of the buckets has samples enough, or any at all."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """Numbers of the samples of one subset, ascending: by bucket, and by the reason why in none.

  `seconds` [n] is how long each sample lasts, 0 of images; `bad` are those that cannot be read.
  """

  chosen: Mapping[str, np.ndarray]
  dropped: Mapping[str, np.ndarray]
  seconds: np.ndarray
  bad: Sequence[BadSample] = ()

  def told(self, source: Source) -> str:
    """The reasons for which samples are in no bucket, with an example of each."""
    lines = []
    for reason, numbers in self.dropped.items():
      shard, key = source.name(int(numbers[0]))
      lines.append(f"{len(numbers):,} {reason} (such as shard {shard}, key {key!r})")
    return ", ".join(lines)


def choose(index: ClipIndex, config: InputConfig, *, subset: str) -> Choice:
  """The choice of the buckets of `subset` among the samples that `index` describes.

  Lengths are compared in hundredths of a second: clocks of files are no finer than 1 ms.
  """
  rows = index.rows
  buckets = [bucket for bucket in config.buckets if bucket.subset == subset]
  readable, still = rows["width"] > 0, rows["rate"] == 0
  seconds = np.round(rows["seconds"], 2)
  short = np.stack([seconds < round(b.min_seconds, 2) for b in buckets])
  short |= np.stack([~_long_enough(b, rows["seconds"]) for b in buckets])
  long = np.stack([seconds >= (round(b.max_seconds, 2) or math.inf) for b in buckets])
  single = np.array([[bucket.frames == 1] for bucket in buckets])
  kind = readable & (single | ~still)
  length = kind & (still | ~(short | long))
  rate = length & (still | np.stack([rows["rate"] >= _least_rate(b, rows) for b in buckets]))
  aspect = _nearest(buckets, rows, rate, tolerance=config.aspect_tolerance)
  size = aspect & np.stack([_large_enough(b, rows, most=config.max_upsampling) for b in buckets])
  without = {  # why a sample is in no bucket; the first that holds is told
    "unreadable": ~readable,
    "an image": ~kind.any(0),
    "too short": ~length.any(0) & short.all(0),
    "too long": ~length.any(0) & long.all(0),
    "between lengths": ~length.any(0),
    "rate too low": ~rate.any(0),
    "aspect beyond tolerance": ~aspect.any(0),
    "too small": ~size.any(0),
  }
  dropped, left = {}, np.ones(len(rows), bool)
  for reason, those in without.items():
    if (those & left).any():
      dropped[reason] = np.flatnonzero(those & left)
    left &= ~those
  chosen = {bucket.name: np.flatnonzero(size[i]) for i, bucket in enumerate(buckets)}
  return Choice(chosen, dropped, rows["seconds"].copy(), tuple(index.bad.values()))


def _long_enough(bucket: Bucket, seconds: np.ndarray) -> np.ndarray:
  """As `Span.fits`, of many clips."""
  if bucket.rate == "spread" or bucket.frames == 1:
    return np.ones(len(seconds), bool)
  return (bucket.frames - 1) / bucket.fps < seconds


def _least_rate(bucket: Bucket, rows: np.ndarray) -> np.ndarray:
  """The frames per second that a clip must have; no frame is spread over the time of two."""
  least = np.full(len(rows), bucket.min_rate)
  if bucket.rate == "spread":
    within = np.clip(rows["seconds"], 1e-9, bucket.frames / bucket.fps)
    least = np.maximum(least, bucket.frames / within)
  return RATE_SLACK * least


def _nearest(
  buckets: Sequence[Bucket], rows: np.ndarray, candidates: np.ndarray, *, tolerance: float
) -> np.ndarray:
  """Those of `candidates`, bool [buckets, n], whose bucket has the aspect nearest to the sample's.

  At the same distance from two, the one that is listed first.
  """
  if not tolerance:
    return candidates
  own = np.log(np.maximum(rows["width"], 1) / np.maximum(rows["height"], 1))
  aspects = np.array([bucket.covered[1] / bucket.covered[0] for bucket in buckets])
  distance = np.where(candidates, np.abs(np.log(aspects)[:, None] - own), np.inf)
  nearest = distance.argmin(0)
  within = distance.min(0) <= math.log1p(tolerance)
  return candidates & within & (aspects[:, None] == aspects[nearest])


def _large_enough(bucket: Bucket, rows: np.ndarray, *, most: float) -> np.ndarray:
  if not most:
    return np.ones(len(rows), bool)
  enlarged = np.maximum(
    bucket.covered[1] / np.maximum(rows["width"], 1),
    bucket.covered[0] / np.maximum(rows["height"], 1),
  )
  return enlarged <= most * (1 + 1e-9)


def choose_samples(
  config: InputConfig,
  directory: str | Path,
  *,
  sources: Mapping[str, Source],
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Choice]:
  """The choice of each subset of `sources` in which a bucket chooses.

  Measures what of the data set has not been measured; `progress` as in `load_clip_index`.

  Raises:
    DataError: the storage fails.
  """
  return {
    subset: choose(
      load_clip_index(directory, source, limits=config.limits, progress=progress),
      config,
      subset=subset,
    )
    for subset, source in sources.items()
    if config.chooses(subset)
  }


def digest_of(numbers: np.ndarray) -> str:
  """SHA-256, in hex, of the numbers of samples."""
  return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def shares(buckets: Sequence[Bucket], samples: Mapping[str, int]) -> dict[str, float]:
  """The share of the batches that each bucket makes, by how many samples it has; 0 without any.

  Buckets of a group share the sum of their weights, by their samples; what has no sample leaves its
  share to all the others.
  """
  weights = {}
  for bucket in buckets:
    group = [b for b in buckets if b.group == bucket.group] if bucket.group else [bucket]
    total = sum(samples[b.name] for b in group)
    part = samples[bucket.name] / total if total else 0.0
    weights[bucket.name] = sum(b.weight for b in group) * part
  values = np.asarray(list(weights.values()))
  parts = values / (values.sum() or 1.0)
  return dict(zip(weights, parts.tolist(), strict=True))

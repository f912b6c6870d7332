"""Scores of whole sets: Frechet and kernel distances to a reference, and inception scores."""

from typing import Any

from vidgen.errors import DataError
from vidgen.evals.frechet import frechet_distance
from vidgen.evals.inception_score import inception_score
from vidgen.evals.mmd import bootstrap_mmd2, subset_mmd2
from vidgen.evals.protocol import Score
from vidgen.evals.registry import METRICS
from vidgen.evals.scoring import Measured, Session

SUBSET = 1000  # samples of each subset of KID


def frechet(session: Session, name: str) -> Score:
  """FVD, FID, and the same of reconstructions.

  Raises:
    DataError: too few samples, sets that do not pair, items that cannot be read.
  """
  fake, real = _both(session, name)
  session.guard(name, fake.rows_count, real.rows_count)
  extractor = session.extractor(name)
  divisor: Any = session.settings.covariance or extractor.protocol().get("covariance", "n-1")
  value = frechet_distance(real.sums, fake.sums, divisor=divisor)
  details = {"covariance": divisor}
  return _score(session, name, {name: value}, fake, real, details)


def kernel(session: Session, name: str) -> Score:
  """KVD over whole sets with a bootstrap interval, KID over subsets or whole sets.

  Raises:
    DataError: as `frechet`.
  """
  fake, real = _both(session, name)
  details: dict[str, Any] = {"kernel": "polynomial of degree 3, unbiased"}
  if METRICS[name].conventions and session.own_convention(name) == "subsets":
    size = min(SUBSET, len(fake.table), len(real.table))
    if size < SUBSET and not session.settings.allow_small:
      raise DataError(
        f"{name} draws subsets of {SUBSET:,} samples, and there are {size}; --allow-small draws"
        f" smaller ones, --convention {name}=whole none"
      )
    estimate = subset_mmd2(real.table, fake.table, size=size)
    values = {name: estimate.mean, "deviation": estimate.std}
    details |= {"subsets": 100, "subset_size": size, "subset_seed": 2020}
  else:
    interval = bootstrap_mmd2(real.table, fake.table, seed=session.settings.seed)
    values = {name: interval.value, "low": interval.low, "high": interval.high}
    details |= {"interval": "95%, bootstrap", "bootstrap_seed": session.settings.seed}
  return _score(session, name, values, fake, real, details)


def inception(session: Session, name: str) -> Score:
  """The inception score and its deviation over ten parts of the samples.

  Raises:
    DataError: items cannot be read.
  """
  fake = session.sampled(name)
  rows = fake.table
  shuffle = "stylegan_v" if METRICS[name].media == "video" else "torch_fidelity"
  splits = min(10, len(rows))
  if splits < 10 and not session.settings.allow_small:
    raise DataError(f"{name} is over ten parts of the samples, and there are {splits} samples")
  score = inception_score(rows, splits=splits, shuffle=shuffle)
  details = {"splits": splits, "shuffle": shuffle}
  values = {name: score.mean, "deviation": score.std}
  return _score(session, name, values, fake, None, details)


def _both(session: Session, name: str) -> tuple[Measured, Measured]:
  if METRICS[name].media == "video":  # of pictures, clips give several each
    paths = [session.samples_path()]
    paths += [session.reference_path()] if session.settings.reference is not None else []
    session.guard(name, *(len(session.media(path, "video")) for path in paths))
  fake, real = session.sampled(name), session.referenced(name)
  session.compatible(name, fake.facts, real.facts)
  return fake, real


def _score(
  session: Session,
  name: str,
  values: dict[str, float],
  fake: Measured,
  real: Measured | None,
  details: dict[str, Any],
) -> Score:
  metric = METRICS[name]
  counts: dict[str, Any] = {"n_fake": fake.rows_count}
  if real is not None:
    counts["n_real"] = real.rows_count
    counts["missing_real"] = real.facts.missing
  if metric.against == "pairs":
    counts["unpaired"] = session.pairs(name)[2]
  record = session.record(
    name,
    facts=fake.facts,
    samples=fake.digest,
    reference=real.digest if real is not None else "",
    extractor=session.extractor(name),
    details={"statistics": "float64", **counts, **details},
  )
  return Score(values, record)

"""What a run left in its directory, read for a report: curves, speed, checkpoint, samples, scores.

Every part may be absent, as a run may be young or was made without it; why it is absent is kept, to
be said. Nothing here restores arrays.
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.evals.samples import SampleSet, read_samples
from vidgen.media.chart import Series
from vidgen.train import manifest

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Quarantine:
  """Distinct bad samples: how many, how many for each reason, and the first of each reason."""

  count: int
  reasons: Mapping[str, int]
  examples: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Scored:
  """The values of one metric, how they came about, and what was found sample by sample.

  `shares`: values are parts of all samples, from 0 to 1. `changes` against an earlier score.
  """

  metric: str
  values: Mapping[str, float]
  protocol: Mapping[str, Any]
  verdicts: tuple[Row, ...]
  changes: Mapping[str, float]
  shares: bool


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a report shows of a run. `missing` says, by part, why that part is not there."""

  directory: Path
  config: Mapping[str, Any] | None
  train: tuple[Row, ...]
  speed: tuple[Row, ...]
  quarantine: Quarantine
  checkpoint: manifest.Manifest | None
  samples: SampleSet | None
  scores: tuple[Scored, ...]
  missing: Mapping[str, str]

  @property
  def step(self) -> int:
    """The last step that is logged or saved."""
    logged = self.train[-1]["step"] if self.train else 0
    return max(logged, self.checkpoint.step if self.checkpoint else 0)

  @property
  def name(self) -> str:
    """What the run's config calls it, or its directory."""
    name = (self.config or {}).get("name")
    return name if isinstance(name, str) and name else self.directory.resolve().name

  def curves(self, key: str) -> list[Series]:
    """Curves of `key` in train.jsonl: one a bucket, or one for lines that are of no bucket."""
    rows: dict[str, list[Row]] = collections.defaultdict(list)
    for row in self.train:
      if key in row:
        rows[str(row.get("bucket", ""))].append(row)
    return [series(bucket or key, found, key) for bucket, found in rows.items()]

  def by_bucket(self, key: str) -> list[Series]:
    """Curves of what train.jsonl holds as KEY/BUCKET: a held-out value of each bucket."""
    names = {name for row in self.train for name in row if name.startswith(f"{key}/")}
    return [
      series(name.removeprefix(f"{key}/"), [row for row in self.train if name in row], name)
      for name in sorted(names)
    ]

  def bad_steps(self) -> int:
    """How many steps changed nothing because a value was not finite."""
    return sum(bool(row.get("bad_steps")) for row in self.train)


def series(name: str, rows: list[Row] | tuple[Row, ...], key: str) -> Series:
  """`key` of `rows` over their steps; NaN for what is no number."""
  steps = np.array([row["step"] for row in rows], int)
  return Series(name, steps, np.array([_float(row.get(key)) for row in rows]))


def read_run(workdir: Path, *, samples: Path | None = None, scores: Path | None = None) -> Run:
  """Reads a run; samples and scores are those of the run's directory unless given.

  Raises:
    ConfigError: there is no such directory, or samples or scores that were asked for are not there.
    DataError: samples or scores that were asked for are damaged.
  """
  if not workdir.is_dir():
    raise ConfigError(f"--workdir {workdir}: no such directory")
  missing: dict[str, str] = {}
  train = _rows(workdir / "train.jsonl", missing, "curves")
  speed = _rows(workdir / "speed.jsonl", missing, "speed")
  return Run(
    directory=workdir,
    config=_config(workdir / "config.json", missing),
    train=tuple(train),
    speed=tuple(speed),
    quarantine=_quarantine(workdir / "quarantine.jsonl"),
    checkpoint=_checkpoint(workdir / "checkpoints", missing),
    samples=_samples(samples, workdir / "samples", missing),
    scores=_scores(scores, workdir / "scores.json", missing),
    missing=missing,
  )


def _lines(path: Path) -> Iterator[Any]:
  """The objects of a file of JSON lines; None for a line that is none."""
  with open(path, "rb") as file:
    for line in file:
      try:
        found = json.loads(line)
      except (ValueError, RecursionError):
        found = None
      yield found if isinstance(found, dict) else None


def _rows(path: Path, missing: dict[str, str], part: str) -> list[Row]:
  """Lines that have a step, in order; a last line that is being written is passed over."""
  if not path.is_file():
    missing[part] = f"{path.name} is not there; `vidgen train` writes it."
    return []
  found = list(_lines(path))
  if found and found[-1] is None:
    found.pop()
  rows = [row for row in found if row is not None and _is_step(row.get("step"))]
  if len(rows) < len(found):
    missing[f"{part}, some"] = f"{len(found) - len(rows)} lines of {path.name} cannot be read."
  if not rows:
    missing[part] = f"{path.name} holds no step yet."
  return sorted(rows, key=lambda row: row["step"])


def _is_step(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _float(value: Any) -> float:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return float(value) if number and math.isfinite(value) else math.nan


def _config(path: Path, missing: dict[str, str]) -> Mapping[str, Any] | None:
  try:
    config = json.loads(path.read_bytes())
    if isinstance(config, dict):
      return config
    missing["config"] = f"{path.name} holds no config."
  except FileNotFoundError:
    missing["config"] = f"{path.name} is not there; `vidgen train` writes it."
  except (ValueError, RecursionError) as error:
    missing["config"] = f"{path.name} cannot be read: {error}"
  return None


def _quarantine(path: Path) -> Quarantine:
  """The file is made with the first bad sample: where it is absent, there was none."""
  reasons: dict[tuple[str, str], str] = {}
  for row in _lines(path) if path.is_file() else ():
    if row is not None and {"shard", "key", "reason"} <= set(row):
      reasons.setdefault((str(row["shard"]), str(row["key"])), str(row["reason"]))
  examples: dict[str, str] = {}
  for (shard, key), reason in reasons.items():
    examples.setdefault(reason, f"{shard}, key {key}")
  counts = collections.Counter(reasons.values())
  return Quarantine(len(reasons), dict(counts.most_common()), examples)


def _checkpoint(directory: Path, missing: dict[str, str]) -> manifest.Manifest | None:
  """The manifest of the newest checkpoint."""
  found = sorted(directory.iterdir()) if directory.is_dir() else []
  steps = [path for path in found if re.fullmatch(r"\d{8,}", path.name)]
  if not steps:
    missing["checkpoint"] = "No checkpoint is there yet."
    return None
  try:
    return manifest.read(max(steps, key=lambda path: int(path.name)))
  except CheckpointError as error:
    missing["checkpoint"] = f"The newest checkpoint cannot be read: {error}"
    return None


def _samples(asked: Path | None, default: Path, missing: dict[str, str]) -> SampleSet | None:
  if asked is not None:
    if not asked.is_dir():
      raise ConfigError(f"--samples {asked}: no such directory")
    return read_samples(asked, allow_missing=True)
  if not default.is_dir():
    missing["samples"] = "There are no samples; `vidgen sample` makes them."
    return None
  try:
    return read_samples(default, allow_missing=True)
  except DataError as error:
    missing["samples"] = f"The samples cannot be read: {error}"
    return None


def _scores(asked: Path | None, default: Path, missing: dict[str, str]) -> tuple[Scored, ...]:
  path = default if asked is None else asked
  if not path.is_file():
    if asked is not None:
      raise ConfigError(f"--scores {asked}: no such file")
    missing["scores"] = "There are no scores; `vidgen eval --json` writes them."
    return ()
  try:
    return _read_scores(path)
  except DataError as error:
    if asked is not None:
      raise
    missing["scores"] = f"The scores cannot be read: {error}"
    return ()


def _read_scores(path: Path) -> tuple[Scored, ...]:
  """Scores as `vidgen eval --json` writes them, or "accuracy" and "protocol" alone.

  Raises:
    DataError: neither is there, or a value is no number.
  """
  try:
    tree = json.loads(path.read_bytes())
    metrics = tree.get("scores")
    if metrics is None:
      metrics = {"shapes_probe": {"values": tree["accuracy"], "protocol": tree["protocol"]}}
    scored = []
    for metric, score in metrics.items():
      values = {str(k): _float(v) for k, v in score["values"].items()}
      if not values or any(map(math.isnan, values.values())):
        raise DataError(f"{path}: {metric}: a value is not a finite number")
      verdicts = tuple(v for v in score.get("verdicts", ()) if isinstance(v["right"], dict))
      changes = {str(k): _float(v) for k, v in tree.get("changes", {}).get(metric, {}).items()}
      shares = bool(verdicts) or "scores" not in tree
      scored.append(Scored(str(metric), values, dict(score["protocol"]), verdicts, changes, shares))
    return tuple(scored)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise DataError(f"{path}: holds no scores: {type(error).__name__}: {error}") from error

"""Scores and the record of how they came about. Scores of different records are not compared."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Protocol:
  """All that two scores must share to be compared, and the digest of what was scored.

  extractor, extractor_version, extractor_digest: what reads the samples, and the SHA-256 of its
  source or weights. height, width, frames, fps: of every sample, as read. count: samples asked
  for; missing: those of them that could not be read and count as wrong. reference: digest of what
  they were held against. quantisation: the form in which samples were read. value_range: what the
  extractor was given. samples: digest of the samples; the one field that may differ, as comparing
  different samples is the point. details: what else a metric must agree in, as plain JSON: the
  feature tensor, resize and crop, the rule by which clips are cut, counts of both sets, the divisor
  of covariances, types. 0 stands for what does not apply or is not the same for all samples.
  """

  metric: str
  extractor: str
  extractor_version: str
  extractor_digest: str
  height: int
  width: int
  frames: int
  fps: float
  count: int
  missing: int
  reference: str
  quantisation: str
  value_range: tuple[float, float]
  samples: str
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def shared(self) -> dict[str, Any]:
    """The fields that must agree."""
    return {name: value for name, value in cfg.plain(self).items() if name != "samples"}


@dataclasses.dataclass(frozen=True)
class Score:
  """The values of one metric, their protocol, and where it has them a verdict for each sample."""

  values: Mapping[str, float]
  protocol: Protocol
  verdicts: tuple[dict[str, Any], ...] = ()


def compare(old: Score, new: Score) -> dict[str, float]:
  """new - old for every value.

  Raises:
    ConfigError: the protocols differ; every difference is named.
  """
  lines = cfg.differences(old.protocol.shared(), new.protocol.shared())
  lines += cfg.differences(sorted(old.values), sorted(new.values), path="values")
  if lines:
    raise ConfigError(f"these scores cannot be compared, their records differ: {'; '.join(lines)}")
  return {name: new.values[name] - old.values[name] for name in new.values}


def score_from_plain(tree: Any, *, path: str = "score") -> Score:
  """A score as `vidgen.config.plain` wrote it.

  Raises:
    DataError: a field is missing, unknown, or of the wrong type.
  """
  try:
    return cfg.build(Score, tree, path=path)
  except ConfigError as error:
    raise DataError(str(error)) from error


def source_digest(*modules: str) -> str:
  """SHA-256 over the source of modules, by name; what an extractor written in Python is."""
  total = hashlib.sha256()
  for name in sorted(modules):
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
      raise ValueError(f"module {name} has no source")
    content = Path(spec.origin).read_bytes()
    total.update(f"{name}\0{len(content)}\0".encode() + content)
  return total.hexdigest()

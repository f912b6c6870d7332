"""What a score is asked for with: sets, weights, conventions, and the rule that cuts clips."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError
from vidgen.evals.clips import ClipRule

DIVISORS = ("n-1", "n")


@dataclasses.dataclass(frozen=True)
class Settings:
  """The options of `vidgen eval`.

  weights: extractor -> file or folder. conventions: metric or extractor -> a name it knows. clip:
  how clips are cut. covariance: divisor, None for the convention's. seed: of what a metric draws.
  batch_size: items an extractor computes on at once, None for its own. allow_small: fewer samples
  than a metric asks for are scored. allow_missing: what cannot be read is left out and counted.
  stats, cache: a file, and a folder, of what was computed of references. prompts: a file of prompts
  for items that carry none. votes: a file of them. extractors: loaded ones, used before any from
  `weights`. devices: those to use; None for all of this process. progress: makes, for each set that
  is read, what is told (items done, of how many) here.
  """

  samples: Path | None = None
  reference: Path | None = None
  weights: Mapping[str, Path] = dataclasses.field(default_factory=dict)
  conventions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  clip: ClipRule = dataclasses.field(default_factory=ClipRule)
  covariance: str | None = None
  seed: int = 0
  batch_size: int | None = None
  allow_small: bool = False
  allow_missing: bool = False
  stats: Path | None = None
  cache: Path | None = None
  prompts: str | None = None
  votes: Path | None = None
  subset: str | None = None
  split: str = "held_out"
  extractors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  devices: tuple[Any, ...] | None = None
  progress: Callable[[], Callable[[int, int], None]] | None = None

  def __post_init__(self):
    if self.covariance not in (None, *DIVISORS):
      raise ConfigError(f"--covariance {self.covariance!r}: known are {', '.join(DIVISORS)}")
    if self.batch_size is not None and self.batch_size < 1:
      raise ConfigError("--batch-size must be at least 1")


def parse_pairs(option: str, texts: list[str], *, known: tuple[str, ...]) -> dict[str, str]:
  """NAME=VALUE,NAME=VALUE and repeated options, as a dict.

  Raises:
    ConfigError: another form, a name that is not known or is given twice.
  """
  found: dict[str, str] = {}
  for pair in (pair for text in texts for pair in text.split(",")):
    name, equals, value = pair.partition("=")
    name = name.strip()
    if not equals or not value.strip():
      raise ConfigError(f"{option} {pair!r}: expected NAME=VALUE")
    if name not in known:
      raise ConfigError(f"{option} {name!r}: known are {', '.join(known)}")
    if name in found:
      raise ConfigError(f"{option} {name}: given twice")
    found[name] = value.strip()
  return found

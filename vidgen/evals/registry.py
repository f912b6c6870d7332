"""The metrics there are. One is imported when it is asked for, so that none costs the others."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from vidgen.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Metric:
  """Where a metric is, "module:function", and what it says, in a line.

  The function takes (samples: `evals.samples.SampleSet`, *, reference: Path) and returns an
  `evals.protocol.Score`.
  """

  target: str
  help: str

  def load(self) -> Callable[..., Any]:
    """Imports the function."""
    module, _, function = self.target.partition(":")
    return getattr(importlib.import_module(module), function)


METRICS: dict[str, Metric] = {
  "shapes_probe": Metric(
    "vidgen.evals.shapes_accuracy:score",
    "share of ShapesWorld samples that show what their caption says, read back from pixels",
  ),
}


def parse_metrics(names: str) -> list[str]:
  """The metrics in a comma-separated list.

  Raises:
    ConfigError: one is unknown, named twice, or none is named.
  """
  chosen = [name.strip() for name in names.split(",") if name.strip()]
  for name in chosen:
    if name not in METRICS:
      raise ConfigError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
  if not chosen or len(set(chosen)) < len(chosen):
    raise ConfigError(f"--metrics {names!r}: name each metric once; known are {', '.join(METRICS)}")
  return chosen


def help_lines(metrics: Sequence[str] | None = None) -> list[str]:
  """A line for each metric: its name and what it says."""
  names = list(METRICS) if metrics is None else list(metrics)
  width = max(map(len, names))
  return [f"{name:{width}}  {METRICS[name].help}" for name in names]

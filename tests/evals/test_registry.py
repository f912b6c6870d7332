"""Metrics are found by name, and imported only when they are asked for."""

import subprocess
import sys

import pytest

from vidgen.errors import ConfigError
from vidgen.evals.registry import METRICS, help_lines, parse_metrics


def test_listing_the_metrics_imports_none_of_them():
  code = (
    "import sys; from vidgen.evals import registry; registry.help_lines();"
    "heavy = {'jax', 'flax', 'numpy', 'av', 'PIL', 'vidgen.evals.shapes_accuracy'};"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_and_says_what_it_is_in_a_line(name):
  assert callable(METRICS[name].load())
  (line,) = help_lines([name])
  assert line.startswith(name) and len(line) <= 110 and "\n" not in line


def test_names_are_checked():
  assert parse_metrics("shapes_probe") == ["shapes_probe"]
  for names in ("fvd2", "", "shapes_probe,shapes_probe", "shapes_probe,nope"):
    with pytest.raises(ConfigError, match="known are shapes_probe"):
      parse_metrics(names)

"""Metrics are found by name, and imported only when they are asked for."""

import inspect
import subprocess
import sys

import pytest

from vidgen.errors import ConfigError
from vidgen.evals.registry import EXTRACTORS, METRICS, help_lines, parse_metrics


def test_listing_the_metrics_imports_none_of_them():
  code = (
    "import sys; from vidgen.evals import registry; registry.help_lines();"
    "heavy = {'jax', 'flax', 'numpy', 'av', 'PIL', 'vidgen.evals.shapes_accuracy',"
    " 'vidgen.evals.scoring'};"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_and_says_what_it_is_in_a_line(name):
  assert callable(METRICS[name].load())
  (line,) = help_lines([name])
  assert line.startswith(name) and len(line) <= 110 and "\n" not in line


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_loads_and_takes_what_the_table_gives_it(name):
  about = EXTRACTORS[name]
  taken = inspect.signature(about.load()).parameters
  keywords = {about.option, about.keyword, *about.beside.values()} - {""}
  assert keywords | {"batch_size"} <= set(taken)
  assert "." in about.public or "/" in about.public  # a file or a folder that one can find


def test_metrics_need_extractors_that_there_are():
  for name, metric in METRICS.items():
    assert set(metric.extractors) <= set(EXTRACTORS), name
    assert metric.against in ("set", "pairs", "prompts", ""), name
    assert metric.keeps in ("rows", "moments") and bool(metric.tensor) <= bool(metric.extractors)


def test_names_are_checked():
  assert parse_metrics("shapes_probe") == ["shapes_probe"]
  for names in ("fvd2", "", "shapes_probe,shapes_probe", "shapes_probe,nope"):
    with pytest.raises(ConfigError, match="known are shapes_probe"):
      parse_metrics(names)

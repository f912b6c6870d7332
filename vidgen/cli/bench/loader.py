"""`vidgen bench loader`: batches of a config from a data set, as the loop gets them."""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Any

RECIPE, CLIPS = "data/shapes_world.py:single", 64  # what is built where no data are given


def measure_loader(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """Batches that are decoded ("decoding"), and those that the config's cache holds ("cached").

  Of each, `repeats` batches after `warmup` others, in which queues run empty, and which must be an
  epoch for the cache to be full. Batches made ahead come at once: the rate is of the mean.
  """
  from vidgen.cli.bench.record import line, spread
  from vidgen.config import load_config, parse_overrides
  from vidgen.train.experiment import resolve

  experiment = resolve(load_config(settings.config, parse_overrides(overrides)))
  config, size = experiment.inputs, experiment.train.batch_size
  caches = {"decoding": 0, "cached": config.cache_bytes}
  with tempfile.TemporaryDirectory() as scratch:
    directory = settings.data or _build(f"{scratch}/data")
    measures = {}
    for name, cache_bytes in caches.items():
      if cache_bytes or name == "decoding":
        inputs = dataclasses.replace(config, cache_bytes=cache_bytes)
        one = dataclasses.replace(experiment, inputs=inputs)
        start, times = _times(one, directory, scratch, settings.warmup + settings.repeats)
        measures[name] = {"start_seconds": start, **spread(times[settings.warmup :])}
        measures[name]["samples_per_second"] = size / measures[name]["mean_seconds"]
  figures = {
    "name": experiment.name,
    "data": settings.data or f"{CLIPS} clips of {RECIPE}",
    "sizes": {
      "batch_size": size,
      "buckets": [bucket.name for bucket in config.buckets],
      "workers": config.workers,
      "threads": config.threads,
      "cache_bytes": config.cache_bytes,
    },
    "measures": measures,
  }
  return figures, (
    f"{line(name, found)}  {found['samples_per_second']:.1f} samples/s, "
    f"the first batch after {found['start_seconds']:.2f} s"
    for name, found in measures.items()
  )


def _times(experiment: Any, directory: str, scratch: str, count: int) -> tuple[float, list[float]]:
  """Seconds from nothing to the first batch, and of each of `count` batches after it."""
  from vidgen.train.data import ShardData

  size, seed = experiment.train.batch_size, experiment.train.seed
  begin = time.perf_counter()
  data = ShardData(experiment.inputs, directory, batch_size=size, seed=seed, workdir=scratch)
  try:
    next(data)
    moments = [time.perf_counter()]
    for _ in range(count):
      next(data)
      moments.append(time.perf_counter())
  finally:
    data.close()
  return moments[0] - begin, [b - a for a, b in itertools.pairwise(moments)]


def _build(directory: str) -> str:
  from vidgen.inputs.build import build_dataset, load_recipe

  build_dataset(dataclasses.replace(load_recipe(RECIPE), count=CLIPS), directory)
  return directory

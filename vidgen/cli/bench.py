"""`vidgen bench`: the train step alone against the step in the loop, and the input pipeline alone.

Both run the same program on batches of one shape, in turns, so that a machine whose speed drifts
treats them alike; medians over all turns are printed. In the loop everything is on: logs, events,
the guards, and reading and decoding of the data, or made-up batches where no data are given.

The first `--warmup` steps of every turn in the loop are a figure of their own: they decode what
later steps take from the cache, and on a CPU the decoding and the step share the cores.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

TURNS = 3
LOOP_OVER_BARE, DATA_WAIT = 1.03, 0.05  # what the loop may cost


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the verb; further ones of the form --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
  parser.add_argument(
    "--config",
    default="configs/movie_gen/t2v_256.py:tiny",
    metavar="FILE.py[:variant]",
    help="what to train (default: %(default)s)",
  )
  parser.add_argument("--data", metavar="DIR", help="the data set; without, batches are made up")
  parser.add_argument("--steps", type=int, default=60, help="steps of each kind (default: 60)")
  parser.add_argument(
    "--warmup", type=int, default=3,
    help="steps before those: an epoch, to time cached data (default: 3)",
  )  # fmt: skip
  parser.add_argument("--json", metavar="FILE", help="write the figures there")


def run(args: argparse.Namespace) -> None:
  """Measures and prints."""
  from vidgen.config import load_config, parse_overrides
  from vidgen.errors import ConfigError
  from vidgen.train.experiment import resolve

  if args.steps < 5 * TURNS:
    raise ConfigError(f"--steps must be at least {5 * TURNS}")
  if args.warmup < 1:
    raise ConfigError("--warmup must be at least 1")
  quiet = {"train.eval_every": 0, "train.save_every": 0, "train.sheet_every": 0}
  config = load_config(args.config, {**quiet, **parse_overrides(args.overrides)})
  figures = measure(resolve(config), data=args.data, steps=args.steps, warmup=args.warmup)
  ratio, wait = figures["loop_over_bare"], figures["data_wait"]
  print(f"bare step      {figures['bare_seconds'] * 1e3:9.2f} ms")
  print(f"step in loop   {figures['loop_seconds'] * 1e3:9.2f} ms")
  print(f"  in warm-up   {figures['warmup_seconds'] * 1e3:9.2f} ms  ({args.warmup} steps a turn)")
  print(f"loop over bare {ratio:9.4f}     {_verdict(ratio, LOOP_OVER_BARE)}")
  print(f"data wait      {wait:9.2%}     {_verdict(wait, DATA_WAIT)}")
  print(f"data alone     {figures['data_batches_per_second']:9.1f} batches/s")
  print(f"model FLOP/s   {figures['model_flops_per_second']:9.3e}")
  if "mfu" in figures:
    print(f"MFU            {figures['mfu']:9.2%}     of {figures['peak_flops_per_second']:.3e}")
  if args.json:
    Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


def _verdict(value: float, limit: float) -> str:
  return f"(at most {limit:g}: {'yes' if value <= limit else 'NO'})"


def measure(experiment: Any, *, data: str | None, steps: int, warmup: int) -> dict[str, Any]:
  """The figures `vidgen bench` prints; times in seconds, `data` None for made-up batches."""
  import dataclasses

  import jax

  from vidgen.dist.mesh import make_mesh
  from vidgen.dist.peaks import peak_flops
  from vidgen.nn.partition import activation_rules
  from vidgen.systems import make_stage
  from vidgen.train.loop import train
  from vidgen.train.programs import Programs

  each = steps // TURNS
  experiment = dataclasses.replace(
    experiment, train=dataclasses.replace(experiment.train, steps=warmup + each + 1)
  )
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  mesh = make_mesh(experiment.mesh)
  with tempfile.TemporaryDirectory() as scratch:
    with jax.set_mesh(mesh), activation_rules(experiment.rules):
      programs = Programs(experiment, stage=stage, mesh=mesh)
      source = _open(experiment, data, programs, scratch)
      rate, batch = _data_rate(source, count=each)
      source.close()
      bucket, batch = programs.put(batch)
      step = programs.train(bucket)
    bare, loop, cold, waits = [], [], [], []
    for turn in range(TURNS):
      bare += _bare(step, programs.init(), batch, count=each)
      timed: Any = Timed(_open(experiment, data, programs, scratch))
      train(experiment, stage=stage, data=timed, workdir=Path(scratch) / str(turn))
      intervals = timed.intervals()
      cold, loop = cold + intervals[:warmup], loop + intervals[warmup:]
      waits += timed.waits[warmup + 1 :]
  bare_seconds, loop_seconds = statistics.median(bare), statistics.median(loop)
  flops = 3 * stage.flops(programs.specs[bucket]) / loop_seconds
  figures = {
    "name": experiment.name,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "batch_size": experiment.train.batch_size,
    "steps": len(loop),
    "data": data or "made up",
    "bare_seconds": bare_seconds,
    "loop_seconds": loop_seconds,
    "warmup_steps": warmup,
    "warmup_seconds": statistics.median(cold),
    "loop_over_bare": loop_seconds / bare_seconds,
    "data_wait": sum(waits) / sum(loop),
    "data_batches_per_second": rate,
    "model_flops_per_second": flops,
  }
  peak = experiment.train.peak_flops or peak_flops(jax.devices()[0].device_kind)
  if peak:
    peak *= jax.device_count()
    figures |= {"mfu": flops / peak, "peak_flops_per_second": peak}
  return figures


def _open(experiment: Any, data: str | None, programs: Any, scratch: str) -> Any:
  if data is None:
    return MadeUp(programs)
  from vidgen.train.data import ShardData

  config = experiment.train
  return ShardData(
    experiment.inputs, data, batch_size=config.batch_size, seed=config.seed, workdir=scratch
  )


def _data_rate(source: Any, *, count: int) -> tuple[float, Any]:
  batch = next(source)  # starts threads and workers
  begin = time.monotonic()
  for _ in range(count):
    batch = next(source)
  return count / (time.monotonic() - begin), batch


def _bare(step: Any, state: Any, batch: Any, *, count: int) -> list[float]:
  """Seconds of each of `count` steps, dispatched ahead as the loop does."""
  import jax

  times, waiting = [], deque()
  for _ in range(count + 5):
    state, metrics = step(state, batch)
    waiting.append(metrics)
    if len(waiting) > 2:
      jax.block_until_ready(waiting.popleft())
      times.append(time.monotonic())
  jax.block_until_ready(state)
  return [after - before for before, after in zip(times[2:-1], times[3:], strict=True)]


class Timed:
  """Data that notes when a batch was asked for and how long it took."""

  def __init__(self, source: Any):
    self._source = source
    self._asked: list[float] = []
    self.waits: list[float] = []

  def __getattr__(self, name: str) -> Any:
    return getattr(self._source, name)

  def __next__(self) -> Any:
    """The next batch."""
    begin = time.monotonic()
    batch = next(self._source)
    self._asked.append(begin)
    self.waits.append(time.monotonic() - begin)
    return batch

  def intervals(self) -> list[float]:
    """Seconds from one batch to the next."""
    return [after - before for before, after in itertools.pairwise(self._asked)]


class MadeUp:
  """The same batch of zeros again and again: what a pipeline that costs nothing would give."""

  def __init__(self, programs: Any):
    import jax

    spec = next(iter(programs.specs.values()))
    count = jax.process_count()
    self._batch = {name: array.zeros()[: array.shape[0] // count] for name, array in spec.items()}

  def __next__(self) -> Any:
    """A batch."""
    return self._batch

  def get_state(self) -> dict[str, Any]:
    """Nothing to remember."""
    return {}

  def set_state(self, state: dict[str, Any], *, changed: bool) -> None:
    """Nothing to go back to."""

  def describe(self) -> dict[str, Any]:
    """Nothing to compare."""
    return {}

  def held_out(self, batches: int) -> list[Any]:
    """There is no such split."""
    return []

  def examples(self, count: int) -> None:
    """There is no such split."""

  def captions(self, examples: Any) -> list[str]:
    """No texts."""
    return []

  def close(self) -> None:
    """Nothing to stop."""

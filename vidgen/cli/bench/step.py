"""`vidgen bench step`: the train step alone against the step in the loop, and the data alone.

Both run the same program on batches of one shape, in turns, so that a machine whose speed drifts
treats them alike. Seconds are means over all turns, total time over steps, so that a stall counts
however seldom it comes; medians, which do not see it, are printed beside them. In the loop
everything is on: logs, events, the guards, and reading and decoding of the data, or made-up batches
where no data are given. Text encoders that run on every batch are no part of the bare step: what
they cost shows in the loop and in the data alone.

The first `--warmup` steps of every turn in the loop are a figure of their own: they decode what
later steps take from the cache, and on a CPU the decoding and the step share the cores.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TURNS = 3
LEAST_WARMUP = 3  # metrics are read two steps late: the third step waits for all the start costs
LOOP_OVER_BARE, DATA_WAIT = 1.03, 0.05  # what the loop may cost

OpenData = Callable[[Any, str], Any]  # (programs, a scratch folder) -> `vidgen.train.loop.Data`


def measure_step(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """The figures, and the lines that say them."""
  from vidgen.config import load_config, parse_overrides
  from vidgen.errors import ConfigError
  from vidgen.train.experiment import resolve

  if settings.steps < 5 * TURNS:
    raise ConfigError(f"--steps must be at least {5 * TURNS}")
  if settings.warmup < LEAST_WARMUP:
    raise ConfigError(f"--warmup must be at least {LEAST_WARMUP}")
  quiet = {"train.eval_every": 0, "train.save_every": 0, "train.sheet_every": 0}
  experiment = resolve(load_config(settings.config, {**quiet, **parse_overrides(overrides)}))
  open_data = data_of(experiment, settings.data)
  figures = measure(
    experiment, open_data=open_data, steps=settings.steps, warmup=settings.warmup, turns=TURNS
  )
  figures["data"] = settings.data or "made up"
  return figures, _lines(figures)


def _lines(figures: dict[str, Any]) -> Iterator[str]:
  ratio, wait = figures["loop_over_bare"], figures["data_wait"]
  for title, name in (("bare step", "bare"), ("step in loop", "loop")):
    mean, median = figures[f"{name}_seconds"], figures[f"{name}_median_seconds"]
    yield f"{title:14s} {mean * 1e3:9.2f} ms  (median {median * 1e3:.2f} ms)"
  steps = figures["warmup_steps"]
  yield f"  in warm-up   {figures['warmup_seconds'] * 1e3:9.2f} ms  ({steps} steps a turn)"
  yield f"  compiled in  {figures['compile_seconds']:9.2f} s"
  yield f"loop over bare {ratio:9.4f}     {_verdict(ratio, LOOP_OVER_BARE)}"
  yield f"data wait      {wait:9.2%}     {_verdict(wait, DATA_WAIT)}"
  yield f"data alone     {figures['data_batches_per_second']:9.1f} batches/s"
  yield f"model FLOP/s   {figures['model_flops_per_second']:9.3e}"
  if "mfu" in figures:
    yield f"MFU            {figures['mfu']:9.2%}     of {figures['peak_flops_per_second']:.3e}"


def _verdict(value: float, limit: float) -> str:
  return f"(at most {limit:g}: {'yes' if value <= limit else 'NO'})"


def data_of(experiment: Any, directory: str | None) -> OpenData:
  """What opens the data set in `directory`, or without one makes batches up."""
  if directory is None:
    return lambda programs, scratch: MadeUp(programs)
  from vidgen.train.encoded import open_data

  return lambda programs, scratch: open_data(
    experiment, directory, workdir=scratch, mesh=programs.mesh
  )


def measure(
  experiment: Any, *, open_data: OpenData, steps: int, warmup: int, turns: int
) -> dict[str, Any]:
  """The figures `vidgen bench` prints, of `steps` steps of each kind in so many turns.

  Times are in seconds: `bare_seconds`, `loop_seconds` and `warmup_seconds` are means. `data_wait`
  is the part of the loop's time in which it waited for a batch. `open_data` is called for every
  turn, and once more to time the data alone.
  """
  import dataclasses

  import jax

  from vidgen.cli.bench.record import speed, spread
  from vidgen.dist.devices import peak_flops
  from vidgen.dist.mesh import make_mesh, on_mesh
  from vidgen.systems import make_stage
  from vidgen.systems.stage import step_flops
  from vidgen.train.loop import train
  from vidgen.train.programs import Programs

  each = steps // turns
  experiment = dataclasses.replace(
    experiment, train=dataclasses.replace(experiment.train, steps=warmup + each + 1)
  )
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  mesh = make_mesh(experiment.mesh)
  with tempfile.TemporaryDirectory() as scratch:
    with on_mesh(mesh, rules=experiment.rules, attention=experiment.attention):
      programs = Programs(experiment, stage=stage, mesh=mesh)
      source = open_data(programs, scratch)
      rate, batch = _data_rate(source, count=each)
      source.close()
      bucket, batch = programs.put(batch)
      begin = time.monotonic()
      step = programs.train(bucket)
      compile_seconds = time.monotonic() - begin
    bare, loop, cold, waits = [], [], [], []
    for turn in range(turns):
      bare += _bare(step, programs.init(), batch, count=each)
      timed: Any = Timed(open_data(programs, scratch))
      train(experiment, stage=stage, data=timed, workdir=Path(scratch) / str(turn))
      intervals = timed.intervals()
      cold, loop = cold + intervals[:warmup], loop + intervals[warmup:]
      waits += timed.waits[warmup:-1]  # those within these intervals
  bare_seconds, loop_seconds = statistics.fmean(bare), statistics.fmean(loop)
  peak = experiment.train.peak_flops or peak_flops(jax.devices()[0].device_kind)
  flops = step_flops(stage, programs.specs[bucket])
  return {
    "name": experiment.name,
    "batch_size": experiment.train.batch_size,
    "bucket": bucket,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params)),
    "steps": len(loop),
    "bare_seconds": bare_seconds,
    "bare_median_seconds": statistics.median(bare),
    "loop_seconds": loop_seconds,
    "loop_median_seconds": statistics.median(loop),
    "warmup_steps": warmup,
    "warmup_seconds": statistics.fmean(cold),
    "compile_seconds": compile_seconds,
    "loop_over_bare": loop_seconds / bare_seconds,
    "data_wait": sum(waits) / sum(loop),
    "data_batches_per_second": rate,
    "measures": {"bare": spread(bare), "loop": spread(loop)},
    **speed(flops, loop_seconds, devices=jax.device_count(), peak=peak),
  }


def _data_rate(source: Any, *, count: int) -> tuple[float, Any]:
  import jax

  batch = jax.block_until_ready(next(source))  # starts threads and workers, compiles encoders
  begin = time.monotonic()
  for _ in range(count):
    batch = next(source)
  jax.block_until_ready(batch)  # encoders run ahead of the host
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


def _passed_on(name: str) -> Any:
  return property(lambda self: getattr(self._source, name))


class Timed:
  """Data that notes when a batch was asked for and how long it took."""

  # Named one by one: from Python 3.12 on, the check of a protocol does not see what only a
  # `__getattr__` finds.
  names, bad_samples = _passed_on("names"), _passed_on("bad_samples")
  get_state, set_state = _passed_on("get_state"), _passed_on("set_state")
  describe, close = _passed_on("describe"), _passed_on("close")
  held_out, examples = _passed_on("held_out"), _passed_on("examples")
  captions, decode = _passed_on("captions"), _passed_on("decode")

  def __init__(self, source: Any):
    self._source = source
    self._asked: list[float] = []
    self.waits: list[float] = []

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

  bad_samples = 0
  decode = None

  def __init__(self, programs: Any):
    import jax

    spec = next(iter(programs.specs.values()))
    count = jax.process_count()
    self._batch = {name: array.zeros()[: array.shape[0] // count] for name, array in spec.items()}
    self.names = frozenset(self._batch)

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

"""The plain mean of the parameters of several runs (Movie Gen, section 3.3.1: its last step).

What is written is a run's directory with one checkpoint that holds the mean as its `ema` and
nothing else: it is sampled, exported, scored and started from as any run is, but not trained on.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen import config as cfg
from vidgen.errors import CheckpointError, ConfigError
from vidgen.train import items as it
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import Experiment, Weights, from_plain, refused
from vidgen.whole_file import write_whole

FILE = "average.json"
GROUP = 1 << 26  # values that are summed at a time
# Fields of a stage that do not change what its parameters mean.
FREE = tuple(f"stage.fields.{name}" for name in ("buckets", "dtype", "remat", "scan_unroll"))
# Of the description of the data, what parameters are bound to.
BOUND = ("encoders", "autoencoder")


@dataclasses.dataclass(frozen=True)
class Source:
  """A run to average: its checkpoint, and what it is bound to."""

  workdir: str
  step: int
  weights: str
  digest: str
  config: dict[str, Any]
  description: Mapping[str, Any]
  arrays: it.Arrays

  @property
  def experiment(self) -> Experiment:
    """What its config describes."""
    return from_plain(self.config)

  def record(self) -> dict[str, Any]:
    """What stands of it beside the mean."""
    return {
      "workdir": self.workdir,
      "name": self.config.get("name"),
      "step": self.step,
      "weights": self.weights,
      "digest": self.digest,
      "config_digest": cfg.digest(self.config),
    }


def average_runs(
  runs: Sequence[tuple[str, int | None]],
  *,
  out: str | Path,
  weights: Weights = "ema",
  allowed: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Writes the mean of `runs` (directory, step or None for the newest) to the directory `out`.

  Sums are float64, in the order of the digests of what is summed: the order of `runs` changes no
  bit, and the mean of equal parameters is these. Its config is that of the first of `runs`, its
  step the largest; `allowed` keys of the config, such as "stage.fields.time_scale", may differ from
  run to run. The host holds the mean twice, and at a time a few arrays of one run.

  Returns:
    "out", "step", "digest" of the mean, and "runs" with what is averaged.

  Raises:
    ConfigError: no runs, or `out` is a run already.
    CheckpointError: a run is not there or damaged, or the runs are of different stages, parameters,
      text encoders or autoencoders; all differences are named.
  """
  if not runs:
    raise ConfigError("no runs to average")
  out = Path(out)
  if (out / "checkpoints").exists():
    raise ConfigError(f"--out {out}: holds checkpoints already")
  opened = [_open(workdir) for workdir, _ in runs]
  try:
    sources = [
      _source(checkpoints, workdir, step, weights)
      for checkpoints, (workdir, step) in zip(opened, runs, strict=True)
    ]
    for other in sources[1:]:
      _check_same(sources[0], other, allowed=allowed)
    order = sorted(range(len(runs)), key=lambda i: sources[i].digest)
    for checkpoints, source in zip(opened, sources, strict=True):
      checkpoints.verify(source.step, arrays=False)
    mean = dict(_means([opened[i] for i in order], [sources[i] for i in order]))
  finally:
    for checkpoints in opened:
      checkpoints.close()
  step = max(source.step for source in sources)
  first = sources[0].experiment
  config = dataclasses.replace(first, train=dataclasses.replace(first.train, ema_dtype="float32"))
  records = [source.record() for source in sources]
  bound = {name: value for name in BOUND if (value := sources[0].description.get(name))}
  position = {"iterator": {}, "description": {"average": records, **bound}}
  made = Checkpoints(out / "checkpoints")
  made.save(step, {"ema": it.nest(mean), "step": np.int32(step)}, position, cfg.plain(config))
  made.close()
  told = {"step": step, "digest": made.digests(step)["ema"], "runs": records}
  write_whole(out / "config.json", (cfg.canonical_json(config) + "\n").encode())
  write_whole(out / FILE, (cfg.canonical_json(told) + "\n").encode())
  return {"out": str(out), **told}


def _means(
  opened: Sequence[Checkpoints], sources: Sequence[Source]
) -> Iterator[tuple[str, np.ndarray]]:
  """The mean of every array, float32, a group after the other; verified as they are read."""
  for names in _groups(sources[0].arrays):
    totals = {name: np.zeros(sources[0].arrays[name].shape, np.float64) for name in names}
    for checkpoints, source in zip(opened, sources, strict=True):
      leaves = {name: source.arrays[name] for name in names}
      found = checkpoints.read_arrays(source.weights, step=source.step, leaves=leaves)
      for name in names:
        totals[name] += np.asarray(found[name], np.float64)
    for name, total in totals.items():
      yield name, (total / len(sources)).astype(np.float32)


def _groups(arrays: it.Arrays) -> Iterator[list[str]]:
  """The names of arrays in groups of at most `GROUP` values, or of one array."""
  group: list[str] = []
  for name in arrays:
    if group and sum(arrays[n].size for n in (*group, name)) > GROUP:
      yield group
      group = []
    group.append(name)
  if group:
    yield group


def _open(workdir: str) -> Checkpoints:
  directory = Path(workdir) / "checkpoints"
  if not directory.is_dir():
    raise CheckpointError(f"{workdir}: holds no checkpoints; train there first")
  return Checkpoints(directory)


def _source(checkpoints: Checkpoints, workdir: str, step: int | None, weights: Weights) -> Source:
  config = checkpoints.read_config(step)
  chosen = checkpoints.latest() if step is None else step
  assert chosen is not None  # read_config raises where there is no checkpoint
  arrays = checkpoints.arrays(weights, step=chosen)
  if not arrays:
    raise CheckpointError(f"{workdir}: step {chosen} holds no {weights!r}")
  return Source(
    workdir=workdir,
    step=chosen,
    weights=weights,
    digest=checkpoints.digests(chosen)[weights],
    config=config,
    description=checkpoints.read_data_state(chosen).get("description", {}),
    arrays=arrays,
  )


def _check_same(one: Source, other: Source, *, allowed: tuple[str, ...]) -> None:
  """Raises CheckpointError where the parameters of two runs do not mean the same."""
  try:
    stages = [{"stage": source.experiment.stage} for source in (one, other)]
  except ConfigError as error:
    raise CheckpointError(f"a stored config does not build: {error}") from error
  shapes = [{name: list(a.shape) for name, a in source.arrays.items()} for source in (one, other)]
  bound = [{name: s.description.get(name) for name in BOUND} for s in (one, other)]
  lines = cfg.differences(*shapes) + cfg.differences(*bound)
  lines = refused(cfg.differences(*stages), allowed=(*FREE, *allowed)) + lines
  if lines:
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    raise CheckpointError(
      f"{one.workdir} and {other.workdir} are of different models, whose mean is none:\n  "
      + "\n  ".join(lines[:20])
      + more
    )

"""An experiment: everything a run is, as frozen dataclasses with every default filled in."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from vidgen.config import build, plain
from vidgen.dist.mesh import AXES, MeshConfig
from vidgen.dist.rules import DEFAULT_RULES, check_rules
from vidgen.errors import ConfigError
from vidgen.inputs.config import InputConfig
from vidgen.nn.attention import AttentionConfig
from vidgen.systems import SampleSettings, stage_config

Weights = Literal["ema", "params"]


def _positive(config: Any, *names: str) -> None:
  for name in names:
    if getattr(config, name) <= 0:
      raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def _fraction(config: Any, *names: str) -> None:
  for name in names:
    if not 0 <= getattr(config, name) < 1:
      raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")


def _compile(*patterns: str) -> None:
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters move. Names of parameters are key paths such as "blocks/attention/query".

  learning_rate is the peak; decay and its fields are described in `optimizer.learning_rate`.
  weight_decay is decoupled, times the learning rate, on matrices only. b1, b2 and eps are Adam's;
  momentum is Muon's. At each step of restarts the schedule begins anew, to end at the next of them.
  groups maps a regex to a multiplier of the learning rate (the first that matches counts); frozen
  lists regexes of parameters that do not train; vectors those of tables that are no matrices,
  whatever their shape: no decay, no orthogonalisation.
  """

  name: Literal["adamw", "adafactor", "muon"] = "adamw"
  learning_rate: float = 1e-4
  warmup_steps: int = 1000
  decay: Literal["constant", "linear", "cosine", "wsd"] = "constant"
  final_fraction: float = 0.0
  decay_fraction: float = 0.2
  restarts: tuple[int, ...] = ()
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  momentum: float = 0.95
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  groups: dict[str, float] = dataclasses.field(default_factory=dict)
  frozen: tuple[str, ...] = ()
  vectors: tuple[str, ...] = ("embed", "position", "table")

  def __post_init__(self):
    _positive(self, "learning_rate", "decay_fraction", "eps", "clip_norm")
    _fraction(self, "b1", "b2", "momentum")
    if not 0 <= self.final_fraction <= 1 or self.decay_fraction > 1:
      raise ValueError("final_fraction and decay_fraction must lie in [0, 1]")
    if any(b <= a for a, b in itertools.pairwise((0, *self.restarts))):
      raise ValueError(f"restarts must increase from above 0, got {self.restarts}")
    if self.warmup_steps < 0 or self.weight_decay < 0:
      raise ValueError("warmup_steps and weight_decay must not be negative")
    if any(multiplier < 0 for multiplier in self.groups.values()):
      raise ValueError("a learning rate multiplier of groups is negative")
    _compile(*self.groups, *self.frozen, *self.vectors)


def optimizer_label(pattern: str) -> str:
  """What the part of the parameters that a regex of `TrainConfig.optimizers` finds is called."""
  return "_".join(re.findall(r"\w+", pattern))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how large and how watched a run is. Everything counted in steps.

  optimizers: by a regex of their names, parameters that have an optimizer of their own, schedule,
  clipping and all, such as "^discriminator/"; the rest has `optimizer`. Metrics of theirs carry the
  words of the regex: "gradient_norm_discriminator".
  batch_size is the global number of samples of a step, cut into `accumulate` micro-batches.
  ema_warmup: see `ema.ema_decay`; 1 means none. max_bad_steps: non-finite steps in a row that end
  the run. A cadence of 0 means never. keep: checkpoints kept, beside those of every
  `keep_every` steps. peak_flops: FLOP/s of one device,
  the base of the reported utilisation; None takes it from `dist.devices`. unsharded_tolerance: see
  `dist.rules.check_sharded`. hang_seconds: without a step for so long the process ends, with exit
  code 6; 0 means never (`hang.Watchdog`). ema_dtype: see `ema.update_ema`. offload: what lies in
  the host's memory while it is not used, for devices that are short of it.
  """

  seed: int = 0
  steps: int = 100_000
  batch_size: int = 256
  accumulate: int = 1
  optimizer: OptimizerConfig = OptimizerConfig()
  optimizers: dict[str, OptimizerConfig] = dataclasses.field(default_factory=dict)
  ema_decay: float = 0.9999
  ema_warmup: int = 10
  ema_dtype: Literal["float32", "bfloat16"] = "float32"
  offload: tuple[Literal["optimizer", "ema"], ...] = ()
  max_bad_steps: int = 10
  log_every: int = 10
  save_every: int = 1000
  keep: int = 3
  keep_every: int = 0
  eval_every: int = 1000
  eval_batches: int = 4
  sheet_every: int = 0
  sheet_count: int = 8
  peak_flops: float | None = None
  unsharded_tolerance: float = 0.02
  hang_seconds: float = 1800.0

  def __post_init__(self):
    _positive(self, "steps", "batch_size", "accumulate", "ema_warmup", "max_bad_steps", "log_every")
    _positive(self, "keep", "eval_batches", "sheet_count")
    _fraction(self, "ema_decay")
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed must lie in [0, 2**32), got {self.seed}")
    if self.batch_size % self.accumulate:
      raise ValueError(
        f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
      )
    if min(self.save_every, self.keep_every, self.eval_every, self.sheet_every) < 0:
      raise ValueError("save_every, keep_every, eval_every and sheet_every must not be negative")
    _compile(*self.optimizers)
    labels = [optimizer_label(pattern) for pattern in self.optimizers]
    if len({"", "main", *labels}) != len(labels) + 2:
      raise ValueError(f"optimizers: patterns {list(self.optimizers)} have no words of their own")
    if self.hang_seconds < 0:
      raise ValueError(f"hang_seconds must not be negative, got {self.hang_seconds}")
    if self.peak_flops is not None and self.peak_flops <= 0:
      raise ValueError(f"peak_flops must be positive, got {self.peak_flops}")


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """Which stage is trained, and its complete fields as plain JSON."""

  name: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StartConfig:
  """What a run without a checkpoint of its own begins with; read once, then never again.

  workdir: another run, whose `weights` at `step` (the newest unless given) are taken by name; what
  it does not have is drawn. A position table of another number of rows is made anew from its rows:
  "linear" interpolates from end to end, "repeat" takes the nearest row before, "keep" takes the
  first rows as they are and draws the rest (`start.expand_rows`). fresh: regexes of parameters that
  are drawn though the other run has them, as must be what has another shape.
  files: weights of others by part of the parameters, such as "autoencoder" (`start.READERS`).
  """

  workdir: str = ""
  step: int | None = None
  weights: Weights = "ema"
  positions: Literal["linear", "repeat", "keep"] = "linear"
  fresh: tuple[str, ...] = ()
  files: dict[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.step is not None and not self.workdir:
      raise ValueError("step is of a workdir, which is not given")
    _compile(*self.fresh)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run's configuration with nothing left open."""

  name: str
  stage: StageConfig
  inputs: InputConfig
  train: TrainConfig
  start: StartConfig = StartConfig()
  topology: str = ""  # the devices that mesh and batch are meant for, as `vidgen plan` spells them
  mesh: MeshConfig = MeshConfig()
  attention: AttentionConfig = AttentionConfig()
  rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = DEFAULT_RULES
  sample: SampleSettings = SampleSettings()


def resolve(config: ConfigDict) -> Experiment:
  """The experiment that a recipe describes, all defaults filled in.

  Raises:
    ConfigError: names the key that is unknown, missing, of the wrong type or out of range.
  """
  return from_plain(plain(config))


def from_plain(tree: Mapping[str, Any]) -> Experiment:
  """The experiment of `plain(experiment)`, as a checkpoint or a config.json holds it.

  Raises:
    ConfigError: as `resolve`.
  """
  experiment = build(Experiment, tree)
  check_rules(experiment.rules, AXES)
  fields = plain(stage_config(experiment.stage.name, experiment.stage.fields))
  stage = dataclasses.replace(experiment.stage, fields=fields)
  return dataclasses.replace(experiment, stage=stage)


def completed(tree: Mapping[str, Any]) -> Any:
  """A stored config with what has been added to configs since, where that has a default."""
  try:
    return plain(from_plain(tree))
  except ConfigError:  # of a key or a stage that is gone, the comparison will say which
    return tree


# What a resumed run may change without being told to: nothing that moves a parameter, but for
# `train.steps`, by which a run is extended: a decaying learning rate then follows the new length.
FREE = (
  "name",
  "topology",
  "sample",
  "mesh",
  "attention",
  "rules",
  "train.steps",
  "train.log_every",
  "train.save_every",
  "train.keep",
  "train.keep_every",
  "train.eval_every",
  "train.eval_batches",
  "train.sheet_every",
  "train.sheet_count",
  "train.max_bad_steps",
  "train.peak_flops",
  "train.unsharded_tolerance",
  "train.hang_seconds",
  "train.offload",
  "inputs.bad_count",
  "inputs.bad_fraction",
  "inputs.threads",
  "inputs.prefetch",
)


# Likewise: where text encoders lie. What they are, by digests, is in the description of the data.
_FREE_PATTERN = re.compile(r"inputs\.encoders\.[^.:]+\.(folder|tokenizer)")

# What the order of the examples, or what is made of them, hangs on; "data" is the data set itself.
_OF_DATA = ("data", "inputs", "train.batch_size", "train.seed")


def moves_data(key: str) -> bool:
  """Whether allowing a change of `key` also allows a data position of another pipeline."""
  return key == "all" or any(
    key == name or name.startswith(f"{key}.") or key.startswith((f"{name}.", f"{name}["))
    for name in _OF_DATA
  )


def refused(lines: list[str], *, allowed: tuple[str, ...]) -> list[str]:
  """Of the lines `key: old -> new`, those whose key neither `FREE` nor `allowed` covers.

  An allowed key covers all below it; "all" covers everything. One that covers nothing is no error:
  the same command must go on after the change has found its way into a checkpoint.
  """

  def covers(key: str, line: str) -> bool:
    name = line.partition(":")[0]
    return key == "all" or name == key or name.startswith(f"{key}.") or name.startswith(f"{key}[")

  return [
    line
    for line in lines
    if not any(covers(key, line) for key in (*FREE, *allowed))
    and not _FREE_PATTERN.fullmatch(line.partition(":")[0])
  ]

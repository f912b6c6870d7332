"""What a recipe of many stages costs: `vidgen plan --recipe FILE.json`, from plans on record.

The file lists stages in their order: {"stage": words, "config": "FILE.py:variant" beside it,
"samples": what its paper says it was trained on}; further keys are the paper's own and not read.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidgen.cli.recorded_plans import read_entries
from vidgen.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Cost:
  """A stage on the devices that its config names.

  samples: steps times batch; paper_samples: what the paper says. flops: of the model, forward and
  backward, if every batch were of the heaviest bucket, as in seconds: those of one step at the
  plan's bound. mix: mean FLOPs of an example by the weights of the buckets, relative to that.
  """

  stage: str
  config: str
  topology: str
  devices: int
  steps: int
  samples: int
  paper_samples: float
  flops: float
  seconds: float
  mfu_bound: float
  mix: float

  @property
  def device_hours(self) -> float:
    """At the bound, every batch of the heaviest bucket."""
    return self.seconds * self.steps * self.devices / 3600

  @property
  def mixed_hours(self) -> float:
    """At the bound, batches of all buckets as their weights say."""
    return self.mix * self.device_hours


def recipe_costs(path: Path) -> list[Cost]:
  """The costs of the stages in the file.

  Raises:
    ConfigError: the file is no such list, or a stage has no plan on record that fits.
  """
  try:
    rows = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: {error}") from error
  for index, row in enumerate(rows if isinstance(rows, list) else [None]):
    if not isinstance(row, dict) or not {"stage", "config", "samples"} <= set(row):
      raise ConfigError(f"{path}: entry {index} has no stage, config and samples")
  return [_cost(path, row) for row in rows]


def _cost(path: Path, row: dict[str, Any]) -> Cost:
  from vidgen.config import load_config
  from vidgen.systems import make_stage
  from vidgen.train.experiment import resolve

  file, _, variant = row["config"].partition(":")
  experiment = resolve(load_config(f"{path.parent / file}:{variant}"))
  plans = path.parent / file.replace(".py", ".plans.json")
  own = [
    entry["plan"]
    for entry in read_entries(plans)
    if (entry["variant"], entry["topology"]) == (variant, experiment.topology)
    and not entry["overrides"]
    and entry.get("plan", {}).get("fits")
    and entry["plan"]["program"] == "train"
  ]
  if not own:
    raise ConfigError(f"{plans}: no plan of {variant} for {experiment.topology} that fits")
  plan, train = own[0], experiment.train
  if plan["batch_size"] != train.batch_size:
    raise ConfigError(f"{plans}: {variant} was planned with another batch: make plans")
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  shares = {b.name: b.weight for b in experiment.inputs.buckets if b.name in stage.buckets}
  work = {name: stage.flops(stage.batch_spec(1, name)) for name in (*shares, plan["bucket"])}
  mean = sum(share * work[name] for name, share in shares.items()) / sum(shares.values())
  return Cost(
    stage=row["stage"],
    config=row["config"],
    topology=plan["topology"],
    devices=plan["devices"],
    steps=train.steps,
    samples=train.steps * train.batch_size,
    paper_samples=float(row["samples"]),
    flops=plan["model_flops"] * train.steps,
    seconds=plan["roofline_seconds"],
    mfu_bound=plan["mfu_bound"],
    mix=mean / work[plan["bucket"]],
  )


def cost_table(costs: Sequence[Cost]) -> str:
  """The costs as a Markdown table, with their sums."""
  rows = [
    "| stage | config | devices | steps | samples, million | model FLOPs | s a step | MFU at most "
    "| device-hours | as buckets are mixed |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for c in costs:
    rows.append(
      f"| {c.stage} | `{c.config}` | {c.topology} | {c.steps:,} | {c.samples / 1e6:,.1f} |"
      f" {c.flops:.2e} | {c.seconds:.1f} | {c.mfu_bound:.0%} | {c.device_hours:,.0f} |"
      f" {c.mixed_hours:,.0f} |"
    )
  rows.append(
    f"| all | | | {sum(c.steps for c in costs):,} | {sum(c.samples for c in costs) / 1e6:,.1f} |"
    f" {sum(c.flops for c in costs):.2e} | | | {sum(c.device_hours for c in costs):,.0f} |"
    f" {sum(c.mixed_hours for c in costs):,.0f} |"
  )
  return "\n".join(rows) + "\n"

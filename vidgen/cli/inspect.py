"""`vidgen inspect`: parameter table and digests, of a run, of a config or of other weights."""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the verb; with --config, --config.key=value overrides the config."""
  parser.set_defaults(takes_overrides=True)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--workdir", type=Path, metavar="DIR", help="a run, as `train` left it")
  what.add_argument(
    "--config", metavar="FILE.py[:variant]", help="a config that need never have been trained"
  )
  what.add_argument(
    "--weights",
    type=Path,
    metavar="PATH",
    help="other people's: a safetensors or PyTorch file, or a folder that holds one",
  )
  parser.add_argument("--step", type=int, help="checkpoint of --workdir (default: the newest)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write it all as JSON")


def run(args: argparse.Namespace) -> int:
  """Prints the table, after the digests were recomputed from what is on disk."""
  from vidgen.errors import ConfigError

  if args.workdir is None and args.step is not None:
    raise ConfigError("--step is of a --workdir; nothing else has steps")
  if args.overrides and (args.workdir or args.weights):
    raise ConfigError(f"unknown argument {args.overrides[0]!r}; only a --config is overridden")
  if args.workdir is not None:
    report = inspect_workdir(args.workdir, step=args.step)
  elif args.weights is not None:
    report = inspect_weights(args.weights)
  else:
    report = inspect_config(args.config, overrides=args.overrides)
  print(table(report))
  if args.json:
    args.json.write_text(json.dumps(report, indent=2) + "\n")
  return 0


def inspect_config(spec: str, *, overrides: list[str]) -> dict[str, Any]:
  """What `--config` shows: shapes by abstract evaluation, so that 30B costs a laptop seconds."""
  from vidgen.config import digest, load_config, parse_overrides, plain
  from vidgen.train.experiment import resolve

  experiment = resolve(load_config(spec, parse_overrides(overrides)))
  return {
    "step": None,
    "config": {"name": experiment.name, "digest": digest(experiment), "values": plain(experiment)},
    "parameters": _parameters(_of_stage(experiment)),
    "digests": None,
  }


def inspect_workdir(workdir: Path, *, step: int | None) -> dict[str, Any]:
  """What `--workdir` shows; every file and array of the checkpoint is read and compared.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  from vidgen.config import digest
  from vidgen.errors import CheckpointError, ConfigError
  from vidgen.train.checkpoint import Checkpoints
  from vidgen.train.experiment import from_plain

  directory = workdir / "checkpoints"
  if not directory.is_dir():
    raise CheckpointError(f"{workdir}: holds no checkpoints; train there first, or check --workdir")
  checkpoints = Checkpoints(directory)
  begin = time.perf_counter()
  manifest = checkpoints.verify(step)
  seconds = time.perf_counter() - begin
  config = checkpoints.read_config(manifest.step)
  try:
    axes = {row["name"]: row["axes"] for row in _of_stage(from_plain(config))}
  except ConfigError:  # written by a version that knew other keys: the arrays are still there
    axes = {}
  # An average of runs has no other parameters.
  item = "params" if any(r.item == "params" for r in manifest.arrays) else "ema"
  rows = [
    {"name": r.path, "shape": list(r.shape), "dtype": r.dtype, "axes": axes.get(r.path)}
    for r in manifest.arrays
    if r.item == item
  ]
  size = sum(file.size for file in manifest.files)
  print(f"{len(manifest.files)} files, {size:,} bytes: verified in {seconds:.2f} s")
  return {
    "step": manifest.step,
    "config": {"name": config.get("name"), "digest": digest(config), "values": config},
    "parameters": _parameters(rows),
    "digests": dict(manifest.digests),
  }


def inspect_weights(path: Path) -> dict[str, Any]:
  """What `--weights` shows: every array of the files, by the names it has there.

  Raises:
    CheckpointError: they are damaged, or hold anything but weights.
  """
  from vidgen.interop.weight_files import open_weights

  weights = open_weights(path)
  rows = [
    {"name": name, "shape": list(spec.shape), "dtype": spec.dtype, "axes": None}
    for name, spec in weights.specs.items()
  ]
  return {
    "step": None,
    "config": None,
    "parameters": _parameters(rows),
    "digests": {"content": weights.digest},
  }


def _of_stage(experiment: Any) -> list[dict[str, Any]]:
  """Name, shape, dtype and logical axes of every parameter, without making one."""
  import jax

  from vidgen.dist.rules import axes_by_path
  from vidgen.systems import make_stage

  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  params = jax.eval_shape(stage.init, jax.random.key(0))
  axes = axes_by_path(params, stage.logical_axes())
  return [
    {
      "name": jax.tree_util.keystr(path, simple=True, separator="/"),
      "shape": list(leaf.shape),
      "dtype": leaf.dtype.name,
      "axes": list(axes[path]),
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]


def _parameters(rows: list[dict[str, Any]]) -> dict[str, Any]:
  arrays = [{**row, "count": math.prod(row["shape"])} for row in rows]
  return {"total": sum(row["count"] for row in arrays), "arrays": arrays}


def table(report: dict[str, Any]) -> str:
  """The report as text: one line a parameter, then the totals and the digests."""
  arrays = report["parameters"]["arrays"]
  rows = [
    (
      row["name"],
      "x".join(map(str, row["shape"])) or "scalar",
      row["dtype"],
      f"{row['count']:,}",
      ", ".join(axis or "-" for axis in row["axes"] or ()),
    )
    for row in arrays
  ]
  rows.insert(0, ("parameter", "shape", "dtype", "count", "logical axes"))
  widths = [max(len(row[column]) for row in rows) for column in range(5)]
  lines = [
    f"{name:{widths[0]}}  {shape:{widths[1]}}  {dtype:{widths[2]}}  {count:>{widths[3]}}  {axes}"
    for name, shape, dtype, count, axes in rows
  ]
  lines += ["", f"parameters  {report['parameters']['total']:,} in {len(arrays)} arrays"]
  if report["config"]:
    lines += [f"config      {report['config']['name']} {report['config']['digest']}"]
  if report["step"] is not None:
    lines += [f"step        {report['step']}"]
  if report["digests"]:
    lines += [f"{name:<11} {sha256}" for name, sha256 in report["digests"].items()]
  return "\n".join(line.rstrip() for line in lines)

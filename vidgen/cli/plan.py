"""`vidgen plan`: compiles a config for devices that are not there and says what it will need.

The compilers come with the extras plan-tpu and plan-gpu. Nothing runs; a laptop will do.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPILOG = """topologies: v5p:4x4x8 is a TPU slice by its chips (v4, v5e, v5p, v6e, v7x); 2*v5p:4x4x8
two of them; h100:128 so many GPUs (a100-40gb, a100-80gb, h100, h200) in machines of eight"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the verb; further ones of the form --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
  parser.epilog = f"{EPILOG}\n{parser.epilog or ''}"
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--config", metavar="FILE.py[:variant]", help="what to plan")
  parser.add_argument(
    "--topology", metavar="TOPOLOGY", help="what to plan it for (default: the config's own)"
  )
  parser.add_argument("--bucket", help="the batch shape (default: the one with most FLOPs)")
  parser.add_argument("--program", choices=["train", "sample"], default="train")
  parser.add_argument(
    "--batch-size", type=int, help="samples of --program sample, or texts of --encoder, at a time"
  )
  parser.add_argument(
    "--encoder",
    metavar="NAME",
    help="plan a frozen text encoder instead of a config: ul2_20b, t5_v1_1_xxl, byt5_small, ...",
  )
  parser.add_argument(
    "--length", type=int, default=300, help="tokens of a text of --encoder (%(default)s)"
  )
  parser.add_argument(
    "--effort",
    type=float,
    default=0.0,
    help="of the compiler for speed, from -1 to 1; -1 is many times faster where a network is of"
    " convolutions, and finds a little more memory (default: a run's, 0)",
  )
  parser.add_argument("--json", metavar="FILE", help="write the plan there")
  parser.add_argument(
    "--sweep", action="store_true", help="try meshes and remat policies, rank those that fit"
  )
  parser.add_argument(
    "--recorded",
    metavar="FILE.plans.json",
    help="plan all that the file lists, and record it there",
  )
  parser.add_argument(
    "--recipe",
    metavar="FILE.json",
    help="what all stages that the file lists cost, by their plans on record",
  )
  parser.add_argument(
    "--check", action="store_true", help="with --recorded: compare, write nothing"
  )
  parser.add_argument(
    "--only", type=int, nargs="+", metavar="I", help="with --recorded: these entries, from 0"
  )
  parser.add_argument(
    "--most", type=int, default=4, help="meshes that fit, after which --sweep ends (%(default)s)"
  )


def run(args: argparse.Namespace) -> int:
  """Plans and prints; exit code 0 also where the plan does not fit.

  Raises:
    ConfigError: the compiler is missing, or the config does not divide over the devices; a recorded
      plan has changed.
  """
  from vidgen.dist.topology import parse_topology, prepare_environment
  from vidgen.errors import ConfigError
  from vidgen.whole_file import write_whole

  if not -1 <= args.effort <= 1:
    raise ConfigError(f"--effort must lie in [-1, 1], got {args.effort}")
  if args.recorded:
    from vidgen.cli.recorded_plans import replan

    replan(Path(args.recorded), only=args.only, check=args.check)
    return 0
  if args.recipe:
    from vidgen.cli.recipe_cost import cost_table, recipe_costs

    costs = recipe_costs(Path(args.recipe))
    print(cost_table(costs), end="")
    if args.json:
      rows = [dataclasses.asdict(cost) for cost in costs]
      write_whole(Path(args.json), (json.dumps(rows, indent=2) + "\n").encode())
    return 0
  if args.encoder:
    if args.config or args.overrides:
      raise ConfigError("--encoder is planned without a --config, and nothing overrides it")
    if args.sweep or args.bucket or args.program != "train" or args.effort:
      raise ConfigError("--encoder has no --sweep, --bucket, --program or --effort")
    if args.length < 1 or (args.batch_size is not None and args.batch_size < 1):
      raise ConfigError("--encoder: --length and --batch-size must be at least 1")
    prepare_environment()
    return _encoder(args)
  if not args.config:
    raise ConfigError(
      "--config FILE.py[:variant], --encoder NAME, --recorded FILE.plans.json or --recipe FILE.json"
      ": one is needed"
    )
  prepare_environment()

  from vidgen.config import load_config, parse_overrides
  from vidgen.train.experiment import resolve
  from vidgen.train.plan import find_remedy, make_plan

  experiment = resolve(load_config(args.config, parse_overrides(args.overrides)))
  if not (args.topology or experiment.topology):
    raise ConfigError(f"{args.config} names no topology; give --topology, such as v5p:4x4x8")
  topology = parse_topology(args.topology or experiment.topology)
  if args.sweep:
    return _sweep(args, experiment, topology)
  plan = make_plan(
    experiment,
    topology,
    program=args.program,
    bucket=args.bucket,
    batch_size=args.batch_size,
    effort=args.effort,
  )
  if not plan.fits and args.program == "train":
    plan = find_remedy(experiment, topology, plan, bucket=args.bucket, effort=args.effort)
  for line in describe(plan):
    print(line)
  if args.json:
    write_whole(Path(args.json), (json.dumps(dataclasses.asdict(plan), indent=2) + "\n").encode())
  return 0


def _encoder(args: argparse.Namespace) -> int:
  from vidgen.dist.topology import parse_topology
  from vidgen.errors import ConfigError
  from vidgen.train.encoder_plan import plan_encoder
  from vidgen.whole_file import write_whole

  if not args.topology:
    raise ConfigError("--encoder: give --topology, such as v5p:4x4x8")
  plan = plan_encoder(
    args.encoder,
    parse_topology(args.topology),
    length=args.length,
    batch_size=args.batch_size,
  )
  for line in describe(plan):
    print(line)
  if args.json:
    write_whole(Path(args.json), (json.dumps(dataclasses.asdict(plan), indent=2) + "\n").encode())
  return 0


def _sweep(args: argparse.Namespace, experiment: Any, topology: Any) -> int:
  from vidgen.dist.topology import absent_devices
  from vidgen.errors import ConfigError
  from vidgen.train.plan import candidates, changed, make_plan, remat_of
  from vidgen.whole_file import write_whole

  options = candidates(experiment, topology, len(absent_devices(topology)))
  if not options:
    raise ConfigError(
      f"--sweep: no mesh divides the batch of {experiment.train.batch_size} over {topology.name}"
    )
  names = ("full", "attention", "names") if remat_of(experiment) else ()
  policies = [{"stage.fields.remat": name} for name in names] or [{}]
  found: list[tuple[Any, str]] = []

  def fits(changes: dict[str, Any]) -> bool:
    flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
    try:
      plan = make_plan(
        changed(experiment, changes), topology, bucket=args.bucket, effort=args.effort
      )
    except ConfigError as error:
      print(f"{flags}: {error}", flush=True)
      return False
    print(f"{_line(plan)}  {flags}", flush=True)
    if plan.fits:
      found.append((plan, flags))
      found.sort(key=lambda pair: pair[0].roofline_seconds)
      if args.json:
        rows = [{"flags": flags, **dataclasses.asdict(plan)} for plan, flags in found]
        write_whole(Path(args.json), (json.dumps(rows, indent=2) + "\n").encode())
    return plan.fits

  meshes = 0
  for changes in options:
    if meshes == args.most:
      break
    # what keeps least first: where that does not fit, nothing that keeps more does
    fitting = list(itertools.takewhile(lambda more, c=changes: fits(c | more), policies))
    meshes += bool(fitting)
  print(f"\n{len(found)} fit; the fastest bound first:")
  for plan, flags in found:
    print(f"{_line(plan)}  {flags}")
  return 0


def _line(plan: Any) -> str:
  peak, usable = plan.peak_bytes_per_device / 2**30, plan.hbm_bytes_per_device / 2**30
  fits = "fits" if plan.fits else "DOES NOT FIT"
  if not plan.roofline_seconds:  # it was refused, and nothing can be counted
    return f"{fits}: {f'{peak:.1f}' if peak else 'more than all'} of {usable:.1f} GiB"
  return (
    f"{fits}: {peak:.1f} of {usable:.1f} GiB, roofline {plan.roofline_seconds:.2f} s"
    f" ({plan.bound_by}), MFU at most {plan.mfu_bound:.1%}"
  )


def describe(plan: Any) -> Iterator[str]:
  """A plan as lines of text."""
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1"
  yield f"{plan.name} on {plan.topology}: {plan.devices} devices, mesh {mesh}"
  yield (
    f"{plan.program}, bucket {plan.bucket}: batch {plan.batch_size} in {plan.accumulate} parts, "
    f"remat {plan.remat or '-'}, {plan.parameters:,} parameters"
  )
  for call, how in plan.attention.items():
    yield f"attention      {how}, for {call}"
  yield _line(plan)
  if plan.problem:
    yield f"why not        {plan.problem}"
    yield f"what would     {plan.remedy or 'nothing that was tried; see --sweep'}"
  parts = ", ".join(f"{k} {v / 2**30:.2f}" for k, v in plan.state_bytes_per_device.items())
  yield f"state          {parts} GiB a device"
  if not plan.fits and not plan.argument_bytes_per_device:
    return
  yield (
    f"memory         arguments {plan.argument_bytes_per_device / 2**30:.2f}, "
    f"temporaries {plan.temporary_bytes_per_device / 2**30:.2f} GiB a device, "
    f"on the host {plan.host_bytes_per_device / 2**30:.2f}"
  )
  yield (
    f"FLOPs a step   model {plan.model_flops:.3e}, executed {plan.executed_flops:.3e} "
    f"({plan.executed_flops / plan.model_flops:.2f} x)"
  )
  yield (
    f"time at least  compute {plan.compute_seconds:.3f} s, memory {plan.memory_seconds:.3f} s, "
    + "communication "
    + (", ".join(f"{a}: {s:.3f} s" for a, s in plan.communication_seconds.items()) or "none")
  )
  for kind, row in plan.collectives.items():
    yield f"{kind:14s} {row['count']:6d} calls, {row['bytes'] / 2**30:8.2f} GiB sent by a device"
  for row in plan.costliest:
    yield (
      f"  {row['bytes'] / 2**30:8.2f} GiB  {row['kind']} over {' x '.join(row['axes']) or '-'},"
      f" {row['times']} times: {row['of']}"
    )
  yield (
    f"compiled in {plan.compile_seconds:.0f} s, with {plan.host_peak_bytes / 2**30:.1f} GiB of host"
    f" memory, by jax {plan.jax}"
  )

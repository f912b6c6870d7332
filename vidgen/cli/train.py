"""`vidgen train`: trains a stage, from the newest checkpoint in the workdir if there is one."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError, Preempted


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the verb; further ones of the form --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
  parser.add_argument("--config", required=True, metavar="FILE.py[:variant]", help="what to train")
  parser.add_argument("--data", required=True, metavar="DIR", help="the data set")
  parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run goes")
  parser.add_argument(
    "--allow-change",
    action="append",
    default=[],
    metavar="KEY",
    help="accept that this key of the config (or 'data', or 'all') differs from the checkpoint's",
  )
  parser.add_argument(
    "--start-from",
    metavar="WORKDIR[@STEP]",
    help="another run, whose parameters this one begins with while it has no checkpoint of its own"
    " (config.start; a part that has another shape there is told, or listed in config.start.fresh)",
  )
  parser.add_argument(
    "--compilation-cache",
    metavar="DIR",
    help="where compiled programs are kept, so that a restart does not compile (default: WORKDIR/"
    "compiled on accelerators, none on CPUs, whose programs do not suit every other CPU)",
  )
  group = parser.add_argument_group(
    "several processes",
    "Each is started with the same command. The tasks of a Slurm step, the ranks of Open MPI and "
    "the workers of a TPU slice on GKE find each other; elsewhere say who they are.",
  )
  group.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="address of process 0; 'auto' on TPU VMs and for indexed Kubernetes jobs",
  )
  group.add_argument("--processes", type=int, metavar="N", help="how many there are")
  group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
  group.add_argument(
    "--join-timeout", type=int, default=300, metavar="SECONDS",
    help="how long to wait for the others at the start (default: %(default)s)",
  )  # fmt: skip
  group.add_argument(
    "--heartbeat-timeout", type=int, default=100, metavar="SECONDS",
    help="after how long without a sign of life one is given up, and all end (%(default)s)",
  )  # fmt: skip


def run(args: argparse.Namespace) -> None:
  """Trains to the end of the run."""
  from vidgen.dist import flags

  set_flags = flags.apply()  # before jax is imported

  from vidgen.config import load_config, parse_overrides
  from vidgen.train.cluster import find_group, join
  from vidgen.train.experiment import resolve

  overrides = parse_overrides(args.overrides)
  if args.start_from:
    overrides |= start_overrides(args.start_from, overrides)
  experiment = resolve(load_config(args.config, overrides))
  group = find_group(
    os.environ, coordinator=args.coordinator, processes=args.processes, process=args.process
  )
  join(group, heartbeat_seconds=args.heartbeat_timeout, timeout_seconds=args.join_timeout)

  import jax

  if jax.process_index() == 0:
    print(*set_flags, sep="\n", file=sys.stderr)
  keep_compiled(args.compilation_cache or default_cache(args.workdir))

  from vidgen.dist.mesh import make_mesh
  from vidgen.systems import make_stage
  from vidgen.train.encoded import open_data
  from vidgen.train.loop import train
  from vidgen.train.together import leave

  try:
    mesh = make_mesh(experiment.mesh)
    data = open_data(experiment, args.data, workdir=args.workdir, mesh=mesh)
    train(
      experiment,
      stage=make_stage(experiment.stage.name, experiment.stage.fields),
      data=data,
      workdir=Path(args.workdir),
      allowed=tuple(args.allow_change),
    )
  except Exception as error:
    if jax.process_count() == 1 or isinstance(error, Preempted):  # the others leave, too
      raise
    leave(error, verb="vidgen train")


def start_overrides(run: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """What `--start-from WORKDIR[@STEP]` means for the config.

  Raises:
    ConfigError: `given` overrides say where to start from, too.
  """
  from vidgen.train.trained import run_and_step

  if both := sorted({"start.workdir", "start.step"} & set(given)):
    raise ConfigError(f"--start-from and --config.{both[0]}: give one of them")
  workdir, step = run_and_step(run)
  return {"start.workdir": workdir, "start.step": step}


def default_cache(workdir: str) -> Path | None:
  """Where the compiled programs of a run are kept if the user does not say."""
  import jax

  return None if jax.default_backend() == "cpu" else Path(workdir) / "compiled"


def keep_compiled(folder: str | Path | None) -> None:
  """Keeps compiled programs in `folder`, unless jax has been told another one."""
  import jax

  if folder is not None and not getattr(jax.config, "jax_compilation_cache_dir", None):
    jax.config.update("jax_compilation_cache_dir", str(folder))

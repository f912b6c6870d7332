"""`vidgen train`: trains a stage, from the newest checkpoint in the workdir if there is one."""

import argparse
from pathlib import Path

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
  group = parser.add_argument_group("several processes (each is started with the same command)")
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="address of process 0; 'auto' on a known cluster"
  )
  group.add_argument("--processes", type=int, metavar="N", help="how many there are")
  group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")


def run(args: argparse.Namespace) -> None:
  """Trains to the end of the run."""
  from vidgen.config import load_config, parse_overrides
  from vidgen.train.experiment import resolve

  experiment = resolve(load_config(args.config, parse_overrides(args.overrides)))
  join(args)

  import jax

  from vidgen.systems import make_stage
  from vidgen.train.data import ShardData
  from vidgen.train.loop import train
  from vidgen.train.together import leave

  try:
    data = ShardData(
      experiment.inputs,
      args.data,
      batch_size=experiment.train.batch_size,
      seed=experiment.train.seed,
      workdir=args.workdir,
    )
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


def join(args: argparse.Namespace) -> None:
  """Joins the other processes of the run, if there are any.

  Raises:
    ConfigError: of --coordinator, --processes and --process only some are given.
  """
  import jax

  given = [args.coordinator, args.processes, args.process]
  if args.coordinator == "auto":
    jax.distributed.initialize()
  elif all(value is not None for value in given):
    jax.distributed.initialize(
      args.coordinator, num_processes=args.processes, process_id=args.process
    )
  elif any(value is not None for value in given):
    raise ConfigError("--coordinator, --processes and --process go together")

"""`vidgen data latents`: measures the latents of an autoencoder on a dataset."""

import argparse
from pathlib import Path
from typing import Any

from vidgen.cli.data.arguments import positive

SUMMARY = "measure an autoencoder's latents, as stages that are trained on them need"
DESCRIPTION = (
  "Encodes clips of the training split, of every bucket of the config, and writes the mean and the "
  "standard deviation of each channel of the latents beside the autoencoder's run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action."""
  parser.add_argument("directory", type=Path, metavar="DIR")
  parser.add_argument(
    "--config", required=True, metavar="FILE.py[:variant]", help="of the stage to be trained"
  )
  parser.add_argument(
    "--autoencoder", default="", metavar="RUN[@STEP]",
    help="the autoencoder's run, if not where the config says",
  )  # fmt: skip
  parser.add_argument(
    "--count", type=positive, default=1024, help="clips of each bucket (default: %(default)s)"
  )
  parser.add_argument("--batch-size", type=positive, default=16, help="clips encoded at once")
  parser.add_argument(
    "--replace", action="store_true",
    help="measure again what was measured before: stages trained on it can then not go on",
  )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, and says what was found."""
  from vidgen.dist import flags

  flags.apply()  # before jax is imported

  import dataclasses

  import jax

  from vidgen.config import load_config
  from vidgen.dist.mesh import MeshConfig, make_mesh
  from vidgen.inputs.config import AutoencoderSource
  from vidgen.train.autoencoder import STATISTICS, measure_statistics, training_clips
  from vidgen.train.experiment import resolve
  from vidgen.train.trained import run_and_step

  experiment = resolve(load_config(args.config))
  source = experiment.inputs.autoencoder or AutoencoderSource()
  if args.autoencoder:
    workdir, step = run_and_step(args.autoencoder)
    source = dataclasses.replace(source, workdir=workdir, step=step)
  clips = training_clips(
    experiment.inputs, str(args.directory), batch_size=args.batch_size, count=args.count
  )
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices=jax.local_devices())
  found = measure_statistics(source, clips, mesh=mesh, replace=args.replace)
  print(f"{source.workdir}/{STATISTICS}: of {found.clips} clips, {len(found.mean)} channels")
  return dataclasses.asdict(found)

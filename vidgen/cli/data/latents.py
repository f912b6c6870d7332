"""`vidgen data latents`: measures the latents of an autoencoder on a dataset."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.data.arguments import part, positive
from vidgen.errors import ConfigError

if TYPE_CHECKING:
  from vidgen.inputs.config import AutoencoderSource
  from vidgen.train.experiment import Experiment

SUMMARY = "measure or cache an autoencoder's latents, for stages that are trained on them"
DESCRIPTION = (
  "Encodes clips of the training split, of every bucket of the config, and writes the mean and the "
  "standard deviation of each channel of the latents beside the autoencoder's run. Once that is "
  "done, --cache writes the latents of every clip, train and held out, beside the dataset, for "
  "config.inputs.latents to name; it goes on if stopped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action; further ones --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
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
  what = parser.add_mutually_exclusive_group()
  what.add_argument(
    "--replace", action="store_true",
    help="measure again what was measured before: stages trained on it can then not go on",
  )  # fmt: skip
  what.add_argument("--cache", action="store_true", help="write the latents of every clip")
  parser.add_argument(
    "--out", type=Path, metavar="DIR", help="where to cache them (default: DIR/latents)"
  )
  parser.add_argument(
    "--part", type=part, default=(0, 1), metavar="I/N",
    help="cache only every N-th shard, from the I-th (0 is the first), for N processes side by "
    "side",
  )  # fmt: skip
  parser.add_argument(
    "--dry-run", action="store_true", help="say how large the cache will be, no more"
  )


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, or writes a cache, and says what was found."""
  from vidgen.dist import flags

  flags.apply()  # before jax is imported

  import dataclasses

  from vidgen.config import load_config, parse_overrides
  from vidgen.inputs.config import AutoencoderSource
  from vidgen.train.experiment import resolve
  from vidgen.train.trained import run_and_step

  experiment = resolve(load_config(args.config, parse_overrides(args.overrides)))
  source = experiment.inputs.autoencoder or AutoencoderSource()
  if args.autoencoder:
    workdir, step = run_and_step(args.autoencoder)
    source = dataclasses.replace(source, workdir=workdir, step=step)
  if args.cache:
    return _cache(args, experiment, source)
  if args.dry_run or args.out or args.part != (0, 1):
    raise ConfigError("--out, --part and --dry-run are of --cache")
  return _measure(args, experiment, source)


def _measure(
  args: argparse.Namespace, experiment: "Experiment", source: "AutoencoderSource"
) -> dict[str, Any]:
  import dataclasses

  from vidgen.train.autoencoder import STATISTICS, measure_statistics, training_clips

  clips = training_clips(
    experiment.inputs, str(args.directory), batch_size=args.batch_size, count=args.count
  )
  found = measure_statistics(source, clips, mesh=_local_mesh(), replace=args.replace)
  print(f"{source.workdir}/{STATISTICS}: of {found.clips} clips, {len(found.mean)} channels")
  return dataclasses.asdict(found)


def _cache(
  args: argparse.Namespace, experiment: "Experiment", source: "AutoencoderSource"
) -> dict[str, Any]:
  """Measures what is to be written, and unless it is a dry run writes it."""
  import dataclasses

  from vidgen.inputs.encode import describe_caches, work_of
  from vidgen.inputs.latents import FOLDER
  from vidgen.train.autoencoder import describe_autoencoder
  from vidgen.train.data import STILL

  try:
    config = dataclasses.replace(experiment.inputs, autoencoder=source, latents=FOLDER, workers=0)
  except ValueError as error:
    raise ConfigError(f"config {args.config}: inputs: {error}") from error
  found = describe_autoencoder(source)
  out = args.out or args.directory / FOLDER
  caches = describe_caches(
    {"train": config, "held_out": dataclasses.replace(config, **STILL)}, args.directory, out=out,
    autoencoder=found.identity,
    shape_of=lambda b: found.latent_shape(frames=b.frames, height=b.height, width=b.width),
  )  # fmt: skip
  work = work_of(caches, part=args.part)
  sizes = {one.bucket.name: {"shards": 0, "samples": 0, "bytes": 0} for one in caches}
  for one in work:
    size = sizes[one.cache.bucket.name]
    size["shards"] += 1
    size["samples"] += len(one.rows)
    size["bytes"] += one.bytes
  for name, size in sizes.items():
    print(
      f"{name}: {size['shards']} shards, {size['samples']:,} samples, "
      f"{size['bytes'] / 2**20:,.1f} MiB"
    )
  total = sum(size["bytes"] for size in sizes.values())
  print(f"{out}: {total / 2**20:,.1f} MiB to write" + (" (dry run)" if args.dry_run else ""))
  result = {"out": str(out), "bytes": total, "buckets": sizes, "autoencoder": found.identity}
  if args.dry_run:
    return result
  bad = _write(args, work, source) if work else {}
  if bad:
    (shard, key), why = next(iter(bad.items()))
    print(f"{len(bad)} samples cannot be used, such as shard {shard}, key {key!r}: {why}")
  return {**result, "bad": len(bad)}


def _write(
  args: argparse.Namespace, work: Any, source: "AutoencoderSource"
) -> dict[tuple[str, str], str]:
  """Loads the autoencoder onto this process's devices, and encodes."""
  import jax
  import numpy as np

  from vidgen.cli.progress import Progress
  from vidgen.inputs.encode import encode_samples
  from vidgen.train.autoencoder import open_autoencoder

  loaded = open_autoencoder(source, mesh=_local_mesh())
  whole = -(-args.batch_size // jax.local_device_count()) * jax.local_device_count()
  return encode_samples(
    work, lambda video: np.asarray(loaded.of_rows(video, batch_size=whole)), batch_size=whole,
    progress=Progress("samples"),
  )  # fmt: skip


def _local_mesh() -> Any:
  import jax

  from vidgen.dist.mesh import MeshConfig, make_mesh

  return make_mesh(MeshConfig(data=1, fsdp=-1), devices=jax.local_devices())

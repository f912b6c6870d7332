"""`vidgen reconstruct`: held-out clips through an autoencoder, beside what it was given."""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError, DataError

SHAPE = ("frames", "height", "width", "fps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen reconstruct`."""
  parser.add_argument("--workdir", type=Path, required=True, help="a run of an autoencoder")
  parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a data set")
  parser.add_argument(
    "--out", type=Path, required=True,
    help="for each bucket OUT/BUCKET/originals and OUT/BUCKET/reconstructions, folders of samples",
  )  # fmt: skip
  parser.add_argument("--count", type=int, help="of clips a bucket (default: all)")
  parser.add_argument("--split", default="held_out", help="of the data set (default: %(default)s)")
  parser.add_argument("--seed", type=int, help="draw clips by it (default: the first)")
  parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument("--bucket", metavar="NAME", help="of the run's config (default: each)")
  group = parser.add_argument_group(
    "the shape", "In place of that of --bucket, or of the first. An image has one frame."
  )
  group.add_argument("--frames", type=int, help="of a clip")
  group.add_argument("--height", type=int, help="in pixels")
  group.add_argument("--width", type=int, help="in pixels")
  group.add_argument("--fps", type=float, help="frames a second")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
  """Reconstructs, and says how near to the originals."""
  from vidgen.config import digest
  from vidgen.evals.reconstruction import Originals, Reconstructor, reconstruct
  from vidgen.evals.samples import SampleOrigin
  from vidgen.inputs.sources import NoSuchSplit, open_source
  from vidgen.train.trained import load_trained

  if args.count is not None and args.count < 1:
    raise ConfigError("--count must be at least 1")
  trained = load_trained(args.workdir, step=args.step, weights=args.weights)
  reconstructor = Reconstructor(trained)
  buckets = _buckets(args, trained)
  for bucket in buckets:
    reconstructor.check(bucket)
  seed = 0 if args.seed is None else args.seed
  found: dict[str, Any] = {}
  for bucket in buckets:
    try:
      source = open_source(args.data, subset=bucket.subset, split=args.split)
    except NoSuchSplit as error:
      print(f"warning: bucket {bucket.name!r} is left out: {error}", file=sys.stderr)
      continue
    settings = trained.settings(frames=bucket.frames, height=bucket.height, width=bucket.width)
    made = SampleOrigin(
      index=0, prompt="", seed=seed, step=trained.step, weights=args.weights,
      config_digest=trained.config_digest, params_digest=trained.params_digest, settings=settings,
      fps=bucket.fps,
    )  # fmt: skip
    of = dataclasses.replace(
      made, step=0, weights="none", config_digest="", params_digest=digest(source.describe())
    )
    out, limits = args.out / bucket.name, trained.experiment.inputs.limits
    result = reconstruct(
      out,
      originals=Originals(source, bucket, limits=limits, count=args.count, seed=args.seed),
      reconstructor=reconstructor, of=of, made=made, progress=_progress(bucket.name),
    )  # fmt: skip
    for bad in result.left_out:
      print(f"warning: left out: {bad}", file=sys.stderr)
    found[bucket.name] = {
      "out": str(out), "count": result.count, "psnr": result.psnr, "split": args.split,
      "left_out": [str(bad) for bad in result.left_out],
      **{name: getattr(bucket, name) for name in SHAPE},
    }  # fmt: skip
    print(
      f"{bucket.name}: {result.count} clips of {bucket.frames} x {bucket.height} x {bucket.width}"
      f" in {out}, PSNR {result.psnr:.2f} dB"
    )
  if not found:
    raise DataError(f"{args.data}: has no split {args.split!r} for any bucket")
  if args.json:
    summary = {
      "buckets": found, "step": trained.step, "weights": args.weights, "seed": args.seed,
      "config_digest": trained.config_digest, "params_digest": trained.params_digest,
    }  # fmt: skip
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0


def _progress(name: str) -> Any:
  from vidgen.cli.progress import Progress

  return Progress(f"{name} clips")


def _buckets(args: argparse.Namespace, trained: Any) -> list[Any]:
  """The buckets that are asked for, of the shape that is, all clips of one rate.

  Raises:
    ConfigError: no such bucket or shape, or one whose name can be no folder's.
  """
  known = {bucket.name: bucket for bucket in trained.experiment.inputs.buckets}
  shape = {name: getattr(args, name) for name in SHAPE if getattr(args, name) is not None}
  name = args.bucket or (trained.stage.buckets[0] if shape else None)
  if name is not None and name not in known:
    raise ConfigError(f"--bucket {name!r}: the run's config has {', '.join(known)}")
  chosen = list(known.values()) if name is None else [known[name]]
  for bucket in chosen:
    if not re.fullmatch(r"\w[\w.-]*", bucket.name):
      raise ConfigError(f"bucket {bucket.name!r}: its name can be no folder's")
  try:
    return [dataclasses.replace(bucket, rate="fixed", **shape) for bucket in chosen]
  except ValueError as error:
    raise ConfigError(str(error)) from error

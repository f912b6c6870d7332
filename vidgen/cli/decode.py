"""`vidgen decode`: saved latents to videos."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen decode`."""
  parser.add_argument(
    "--latents", type=Path, required=True, metavar="PATH",
    help="a folder that `vidgen sample --latents-only` filled, or one .npy file [t, h, w, c]",
  )  # fmt: skip
  parser.add_argument(
    "--autoencoder", required=True, metavar="RUN[@STEP]", help="the run that decodes them"
  )
  parser.add_argument("--out", type=Path, required=True, help="folder for the videos")
  parser.add_argument("--fps", type=float, help="of a file (default: 24); a folder says its own")
  parser.add_argument("--frames", type=int, help="of a file (default: all there are); likewise")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
  """Decodes, and says where the videos are."""

  from vidgen.cli.progress import Progress
  from vidgen.dist.mesh import MeshConfig, make_mesh
  from vidgen.errors import ConfigError
  from vidgen.evals.decoding import decode, find_latents
  from vidgen.inputs.config import AutoencoderSource
  from vidgen.train.autoencoder import open_autoencoder
  from vidgen.train.trained import run_and_step

  if args.fps is not None and not 0 < args.fps < 1000:
    raise ConfigError(f"--fps must lie between 0 and 1000, got {args.fps:g}")
  found = find_latents(args.latents, fps=args.fps, frames=args.frames)
  workdir, step = run_and_step(args.autoencoder)
  source = AutoencoderSource(workdir=workdir, step=step, **found.encoding)
  loaded = open_autoencoder(source, mesh=make_mesh(MeshConfig(data=1, fsdp=-1)))
  made = decode(found, args.out, autoencoder=loaded, progress=Progress("videos"))
  print(f"{len(made)} videos in {args.out}")
  if args.json:
    videos = [{"file": v.file, "sha256": v.sha256, "frames": v.frames} for v in made]
    args.json.write_text(json.dumps({"out": str(args.out), "videos": videos}, indent=2) + "\n")
  return 0

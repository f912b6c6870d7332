"""`vidgen export`: weights, or a program that runs without vidgen, for serving."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen export`."""
  parser.add_argument("--workdir", type=Path, required=True, help="a run, as `train` left it")
  parser.add_argument(
    "--to", choices=("safetensors", "stablehlo"), required=True,
    help="weights with their config, or sampling as a program with its weights",
  )  # fmt: skip
  parser.add_argument("--out", type=Path, required=True, help="folder for the export")
  parser.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument("--steps", type=int, help="stablehlo: sampler steps (default: the config's)")
  parser.add_argument("--guidance", type=float, help="stablehlo: guidance scale (likewise)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write what was exported")


def run(args: argparse.Namespace) -> int:
  """Exports, and says what was checked."""
  from vidgen.config import plain
  from vidgen.errors import ConfigError
  from vidgen.interop.parameters import Origin
  from vidgen.train.trained import load_trained

  if args.to == "safetensors" and (args.steps is not None or args.guidance is not None):
    raise ConfigError("--steps and --guidance are for --to stablehlo")
  trained = load_trained(args.workdir, step=args.step, weights=args.weights)
  config = plain(trained.experiment)
  origin = Origin(trained.step, trained.weights, trained.config_digest, trained.params_digest)
  if args.to == "safetensors":
    from vidgen.interop.safetensors import load_safetensors, save_safetensors

    path = save_safetensors(args.out, trained.params, config=config, origin=origin)
    load_safetensors(path)
    line = f"{path}: {args.weights} of step {trained.step}; read back and verified"
    facts = {"to": args.to, "out": str(args.out), "file": str(path), "origin": plain(origin)}
  else:
    from vidgen.interop.stablehlo import export_stablehlo

    manifest = export_stablehlo(
      args.out, stage=trained.stage, params=trained.params, config=config, origin=origin,
      settings=trained.settings(steps=args.steps, guidance_scale=args.guidance), fps=trained.fps,
    )  # fmt: skip
    line = (
      f"{args.out}: {args.weights} of step {trained.step} for {', '.join(manifest['platforms'])};"
      f" differs from the stage by {manifest['parity']['difference']:.1e}"
    )
    if manifest["platforms_left_out"]:
      line += f"\n  {manifest['platforms_left_out']}"
    facts = {"to": args.to, "out": str(args.out), "origin": plain(origin)}
    facts |= {key: manifest[key] for key in ("platforms", "parity", "files")}
  print(line)
  if args.json:
    args.json.write_text(json.dumps(facts, indent=2) + "\n")
  return 0

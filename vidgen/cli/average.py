"""`vidgen average`: the mean of the parameters of several runs, as a run."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen average`."""
  parser.add_argument(
    "runs", nargs="+", metavar="RUN[@STEP]",
    help="runs of one model, as `train` left them; the newest step unless one is given",
  )  # fmt: skip
  parser.add_argument(
    "--out", type=Path, required=True, metavar="DIR",
    help="a new run directory for the mean, to sample, export, score or start from",
  )  # fmt: skip
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters of each run"
  )
  parser.add_argument(
    "--allow-change", action="append", default=[], metavar="KEY",
    help="accept that this key of the config, such as stage.fields.time_scale, differs from run to"
    " run; the mean has that of the first",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write what was averaged")


def run(args: argparse.Namespace) -> int:
  """Averages, and says what of."""
  from vidgen.train.average import average_runs
  from vidgen.train.trained import run_and_step

  runs = [run_and_step(text) for text in args.runs]
  made = average_runs(runs, out=args.out, weights=args.weights, allowed=tuple(args.allow_change))
  for source in made["runs"]:
    print(f"  {source['workdir']}: {source['weights']} of step {source['step']}, "
          f"sha256 {source['digest'][:12]}")  # fmt: skip
  print(f"{args.out}: the mean of {len(runs)} as step {made['step']}, sha256 {made['digest'][:12]}")
  if args.json:
    args.json.write_text(json.dumps(made, indent=2) + "\n")
  return 0

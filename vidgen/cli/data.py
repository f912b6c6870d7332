"""`vidgen data build` and `vidgen data check`."""

import argparse
import json
from pathlib import Path

from vidgen.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the two actions with their arguments."""
  actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
  build = actions.add_parser("build", help="build a dataset from a recipe; goes on if stopped")
  build.add_argument("recipe", metavar="RECIPE.py[:variant]")
  build.add_argument("--out", type=Path, required=True, metavar="DIR")
  build.add_argument("--count", type=_positive, help="training clips (default: the recipe's)")
  build.add_argument("--format", choices=("tar", "array_record"), default="tar")
  build.add_argument("--seed", type=int, default=0)
  build.add_argument("--workers", type=_positive, help="processes (default: one a processor)")
  check = actions.add_parser("check", help="read every sample of a dataset and count the bad ones")
  check.add_argument("directory", type=Path, metavar="DIR")
  for action in (build, check):
    action.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    action.add_argument(
      "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def run(args: argparse.Namespace) -> None:
  """Builds or checks."""
  result = _build(args) if args.action == "build" else _check(args)
  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
  if args.action == "check" and result["bad"]:
    raise DataError(
      f"{args.directory}: {len(result['bad'])} problems; build it again, or train on"
      " the rest within inputs.bad_count and inputs.bad_fraction"
    )


def _build(args: argparse.Namespace) -> dict:
  import dataclasses

  from vidgen.cli.progress import Progress
  from vidgen.inputs.build import build_dataset, load_recipe

  recipe = load_recipe(args.recipe)
  if args.count:
    recipe = dataclasses.replace(recipe, count=args.count)
  result = build_dataset(
    recipe,
    args.out,
    seed=args.seed,
    storage=args.format,
    workers=args.workers,
    progress=Progress("samples"),
  )
  size = sum(shard["bytes"] for shard in result["shards"]) / 2**20
  counts = ", ".join(f"{s} {n['train']} + {n['held_out']}" for s, n in result["counts"].items())
  print(f"{args.out}: {counts} held-out; {len(result['shards'])} shards, {size:.1f} MiB")
  return result


def _check(args: argparse.Namespace) -> dict:
  from vidgen.cli.progress import Progress
  from vidgen.inputs.build import verify_shards
  from vidgen.inputs.check import check_dataset

  result = check_dataset(args.directory, progress=Progress("samples"))
  if (args.directory / "dataset.json").exists():
    result["bad"] += verify_shards(args.directory)
  bad = result["bad"]
  for entry in bad[:20]:
    print(" ".join(str(entry[name]) for name in ("shard", "key", "reason") if entry[name]))
  print(f"{args.directory}: {result['samples']} samples, {len(bad)} problems")
  return result

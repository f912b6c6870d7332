"""`vidgen data build`: a dataset from a recipe."""

import argparse
from pathlib import Path
from typing import Any

from vidgen.cli.data.arguments import positive

SUMMARY = "build a dataset from a recipe; goes on if stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action."""
  parser.add_argument("recipe", metavar="RECIPE.py[:variant]")
  parser.add_argument("--out", type=Path, required=True, metavar="DIR")
  parser.add_argument("--count", type=positive, help="training clips (default: the recipe's)")
  parser.add_argument("--format", choices=("tar", "array_record"), default="tar")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=positive, help="processes (default: one a processor)")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Builds, and says what there is."""
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

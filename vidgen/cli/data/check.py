"""`vidgen data check`: reads every sample of a dataset and counts the bad ones."""

import argparse
from pathlib import Path
from typing import Any

from vidgen.errors import DataError

SUMMARY = "read every sample of a dataset and count the bad ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action."""
  parser.add_argument("directory", type=Path, metavar="DIR")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Checks, and lists the first problems."""
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


def conclude(args: argparse.Namespace, result: dict[str, Any]) -> None:
  """Ends the command with exit code 3 if there were problems, once they have been written.

  Raises:
    DataError: there were.
  """
  if result["bad"]:
    raise DataError(
      f"{args.directory}: {len(result['bad'])} problems; build it again, or train on"
      " the rest within inputs.bad_count and inputs.bad_fraction"
    )

"""`vidgen data ACTION`. Each action is a module here with SUMMARY, `add_arguments` and `run`."""

import argparse
import importlib
import json
from pathlib import Path

ACTIONS = ("build", "check", "plan", "embed", "latents")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the actions with their arguments."""
  actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
  for name in ACTIONS:
    module = importlib.import_module(f"vidgen.cli.data.{name}")
    action = actions.add_parser(
      name, help=module.SUMMARY, description=getattr(module, "DESCRIPTION", None)
    )
    module.add_arguments(action)
    action.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    action.add_argument(
      "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def run(args: argparse.Namespace) -> None:
  """Does the action, and writes what it returns."""
  module = importlib.import_module(f"vidgen.cli.data.{args.action}")
  result = module.run(args)
  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
  if hasattr(module, "conclude"):
    module.conclude(args, result)

"""`vidgen eval`: scores of a folder of samples, each with the record of how it came about."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen eval`."""
  from vidgen.evals.registry import help_lines

  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.epilog = "metrics:\n  " + "\n  ".join(help_lines()) + f"\n\n{parser.epilog}"
  parser.add_argument("--samples", type=Path, help="folder that `vidgen sample` wrote")
  parser.add_argument("--reference", type=Path, help="data set, or a .jsonl file with attributes")
  parser.add_argument(
    "--metrics", required=True, metavar="NAME,...", help="what to compute; `help` lists them"
  )
  parser.add_argument(
    "--allow-missing", action="store_true",
    help="count samples that cannot be read as wrong, instead of refusing",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write values, records, verdicts")
  parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json file")


def run(args: argparse.Namespace) -> int:
  """Scores, prints a table, and compares where asked."""
  from vidgen.config import plain
  from vidgen.errors import ConfigError
  from vidgen.evals.protocol import compare
  from vidgen.evals.registry import METRICS, help_lines, parse_metrics
  from vidgen.evals.samples import read_samples

  if args.metrics == "help":
    print("\n".join(help_lines()))
    return 0
  names = parse_metrics(args.metrics)
  if args.samples is None or args.reference is None:
    raise ConfigError("--samples and --reference are needed")
  if not args.reference.exists():
    raise ConfigError(f"--reference {args.reference}: no such file or folder")
  earlier = None if args.compare is None else _read_scores(args.compare, names)
  samples = read_samples(args.samples, allow_missing=args.allow_missing)
  scores = {name: METRICS[name].load()(samples, reference=args.reference) for name in names}
  changes = {name: compare(earlier[name], scores[name]) for name in names} if earlier else {}
  for name, score in scores.items():
    _print(name, score, changes.get(name))
  if args.json:
    report: dict[str, Any] = {"scores": {name: plain(score) for name, score in scores.items()}}
    if changes:
      report["changes"] = changes
    if score := report["scores"].get("shapes_probe"):  # the names that reports and demos look for
      five = ("shape", "colour", "motion", "background", "all")
      report["accuracy"] = {name: score["values"][name] for name in five}
      report["protocol"] = score["protocol"]
      report["samples"] = score["verdicts"]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
  return 0


def _read_scores(path: Path, names: list[str]) -> dict[str, Any]:
  from vidgen.errors import ConfigError, DataError
  from vidgen.evals.protocol import score_from_plain

  if not path.is_file():
    raise ConfigError(f"--compare {path}: no such file")
  try:
    tree = json.loads(path.read_bytes())["scores"]
    return {name: score_from_plain(tree[name], path=f"{path}: {name}") for name in names}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(f"--compare {path}: no scores of {', '.join(names)} in it") from error


def _print(name: str, score: Any, changes: dict[str, float] | None) -> None:
  p = score.protocol
  print(
    f"{name}  {p.count} samples of {p.frames} x {p.height} x {p.width} at {p.fps:g} fps", end=""
  )
  print(f", {p.missing} of them missing and counted as wrong" if p.missing else "")
  for key, value in score.values.items():
    change = "" if changes is None else f"  {changes[key]:+7.1%}"
    print(f"  {key:12}{value:7.1%}{change}")
  print(f"  protocol: {p.extractor}, version {p.extractor_version} ({p.extractor_digest[:12]});")
  print(f"  {p.quantisation}; reference {p.reference[:12]}, samples {p.samples[:12]}")

"""`vidgen eval`: scores of samples, each with the record of how it came about."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARES = ("shape", "colour", "motion", "background", "all")  # names that reports and demos look for


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen eval`."""
  from vidgen.evals.registry import EXTRACTORS, help_lines

  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  lines = [f"{name:10}  {weights.public}" for name, weights in EXTRACTORS.items()]
  parser.epilog = (
    "metrics:\n  " + "\n  ".join(help_lines()) + "\n\nweights, from where you have them:\n  "
    + "\n  ".join(lines) + f"\n\n{parser.epilog}"
  )  # fmt: skip
  add = parser.add_argument
  add(
    "--samples",
    type=Path,
    metavar="DIR",
    help="what `vidgen sample` wrote, a folder of clips, pictures or sounds, or a data set",
  )
  add(
    "--reference",
    type=Path,
    metavar="PATH",
    help="the same of real ones, or of those that samples are reconstructions or edits of; for"
    " shapes_probe a data set, or a .jsonl file with attributes",
  )
  add("--metrics", required=True, metavar="NAME,...", help="what to compute; `help` lists them")
  add("--weights", action="append", default=[], metavar="NAME=PATH,...", help="of extractors")
  add(
    "--convention",
    action="append",
    default=[],
    metavar="NAME=VARIANT,...",
    help="a published variant of a metric or extractor, such as fvd=videogpt",
  )
  add(
    "--prompts",
    metavar="FILE",
    help="prompts of samples that carry none, by key or in order; or to sample from",
  )
  add("--votes", type=Path, metavar="FILE", help="for win_rate: .jsonl or .csv")
  clips = parser.add_argument_group("how clips are cut")
  clips.add_argument("--frames", type=int, metavar="N", help="of each clip (FVD, KVD, IS: 16)")
  clips.add_argument("--fps", type=float, metavar="RATE", help="resample to this rate")
  clips.add_argument(
    "--clip",
    default="start",
    metavar="start|centre|random",
    help="which part of a clip is taken (default: %(default)s)",
  )
  clips.add_argument(
    "--sequence-fps",
    type=float,
    metavar="RATE",
    help="the rate of clips that are folders of pictures; without it, metrics of"
    " pictures take each for itself",
  )
  clips.add_argument("--seed", type=int, default=0, help="of random clips, draws, and samples")
  clips.add_argument("--subset", metavar="NAME", help="of a data set (default: by the metric)")
  clips.add_argument("--split", default="held_out", help="of a data set (default: %(default)s)")
  numbers = parser.add_argument_group("how values come about")
  numbers.add_argument("--covariance", metavar="n-1|n", help="divisor (default: the convention's)")
  numbers.add_argument("--batch-size", type=int, metavar="N", help="that an extractor computes on")
  numbers.add_argument(
    "--allow-small", action="store_true", help="score fewer samples than a metric needs to say much"
  )
  numbers.add_argument(
    "--allow-missing", action="store_true",
    help="count samples that cannot be read, as wrong or left out, instead of refusing",
  )  # fmt: skip
  numbers.add_argument(
    "--stats",
    type=Path,
    metavar="FILE.npz",
    help="statistics of the reference: used if they are there, else written",
  )
  numbers.add_argument(
    "--cache",
    type=Path,
    metavar="DIR",
    help="where such statistics are kept by the digest of what they are of",
  )
  run = parser.add_argument_group("straight from a checkpoint, sampling --prompts first")
  run.add_argument("--workdir", type=Path, metavar="DIR", help="a run, as `train` left it")
  run.add_argument("--step", type=int, help="checkpoint (default: the newest)")
  run.add_argument("--count", type=int, help="only the first so many prompts")
  run.add_argument("--steps", type=int, help="sampler steps (default: the config's)")
  run.add_argument("--guidance", type=float, help="guidance scale (likewise)")
  run.add_argument("--parameters", choices=("ema", "params"), default="ema", help="which are used")
  run.add_argument(
    "--encoder", action="append", default=[], metavar="NAME=FOLDER", help="as of `vidgen sample`"
  )
  group = parser.add_argument_group(
    "several processes", "Each is started with the same command, and scores its share of the items."
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, or 'auto'")
  group.add_argument("--processes", type=int, metavar="N", help="how many there are")
  group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
  add("--json", type=Path, metavar="FILE", help="write values, records, verdicts")
  add("--compare", type=Path, metavar="FILE", help="an earlier --json file")


def run(args: argparse.Namespace) -> int:
  """Scores, prints a table, and compares where asked."""
  from vidgen.evals.registry import METRICS, help_lines, parse_metrics

  if args.metrics == "help":
    print("\n".join(help_lines()))
    return 0
  names = parse_metrics(args.metrics)
  _check(args, [METRICS[name] for name in names])
  earlier = None if args.compare is None else _read_scores(args.compare, names)
  settings = _settings(args)

  from vidgen.train.cluster import find_group, join

  join(find_group(
    os.environ, coordinator=args.coordinator, processes=args.processes, process=args.process
  ))  # fmt: skip

  import jax

  from vidgen.train.together import leave

  try:
    return _run(args, names, settings, earlier)
  except Exception as error:
    if jax.process_count() > 1:
      leave(error, verb="vidgen eval")
    raise


def _run(args: argparse.Namespace, names: list[str], settings: Any, earlier: Any) -> int:
  import jax

  from vidgen.errors import ConfigError
  from vidgen.evals.protocol import compare
  from vidgen.evals.scoring import Session

  session = Session(settings, names)
  session.load()
  if args.workdir is not None:
    if jax.process_count() > 1:
      raise ConfigError("--workdir samples in one process; sample first, then score in several")
    _sample(args)
  scores: dict[str, Any] = {}
  try:
    for name in names:
      scores[name] = session.score(name)
  except Exception:
    if scores and not jax.process_index():  # hours of work, perhaps
      _say(scores, {}, args.json)
    raise
  changes: dict[str, dict[str, float]] = {}
  refused: list[str] = []
  for name in names if earlier else ():
    try:
      changes[name] = compare(earlier[name], scores[name])
    except ConfigError as error:
      refused.append(f"{name}: {error}")
  if not jax.process_index():  # the others have the same values
    _say(scores, changes, args.json)
  if refused:
    raise ConfigError("; ".join(refused))
  return 0


def _say(
  scores: Mapping[str, Any], changes: Mapping[str, dict[str, float]], path: Path | None
) -> None:
  """Prints scores, and writes them to the file of `--json` if there is to be one."""
  from vidgen.config import plain
  from vidgen.whole_file import write_whole

  for name, score in scores.items():
    _print(name, score, changes.get(name))
  if path is not None:
    report: dict[str, Any] = {"scores": {name: plain(score) for name, score in scores.items()}}
    if changes:
      report["changes"] = changes
    if score := report["scores"].get("shapes_probe"):
      report["accuracy"] = {name: score["values"][name] for name in SHARES}
      report["protocol"] = score["protocol"]
      report["samples"] = score["verdicts"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def _check(args: argparse.Namespace, metrics: list[Any]) -> None:
  """Refuses at once what would only be found out after sampling.

  Raises:
    ConfigError: a path is not named, or not there.
  """
  from vidgen.errors import ConfigError

  if args.workdir is not None and args.prompts is None:
    raise ConfigError("--workdir samples from --prompts, which is needed")
  for name in ("step", "count", "steps", "guidance"):
    if args.workdir is None and getattr(args, name) is not None:
      raise ConfigError(f"--{name} is for sampling from a --workdir")
  if args.samples is None and args.workdir is None and any(m.media != "votes" for m in metrics):
    raise ConfigError("--samples is needed, or --workdir and --prompts to sample from")
  if args.reference is not None and not args.reference.exists():
    raise ConfigError(f"--reference {args.reference}: no such file or folder")
  needed = [m for m in metrics if m.against in ("set", "pairs")]
  kept = args.stats is not None and args.stats.is_file()
  if args.reference is None and needed and not (kept and all(m.extractors for m in needed)):
    raise ConfigError("--reference is needed, or --stats with what was computed of one")


def _sample(args: argparse.Namespace) -> None:
  """Samples as `vidgen sample` would, into --samples or WORKDIR/eval/samples."""
  from vidgen.cli import sample

  parser = argparse.ArgumentParser()
  sample.add_arguments(parser)
  words = ["--workdir", str(args.workdir), "--prompts", str(args.prompts)]
  words += ["--out", str(args.samples), "--seed", str(args.seed), "--weights", args.parameters]
  for encoder in args.encoder:
    words += ["--encoder", encoder]
  for name in ("step", "count", "steps", "guidance"):
    if getattr(args, name) is not None:
      words.append(f"--{name}={getattr(args, name)}")
  sample.run(parser.parse_args(words))


def _settings(args: argparse.Namespace) -> Any:
  from vidgen.cli.progress import Progress
  from vidgen.evals.clips import ClipRule
  from vidgen.evals.registry import METRICS, parse_metrics, weight_names
  from vidgen.evals.settings import Settings, parse_pairs

  if args.workdir is not None and args.samples is None:
    args.samples = args.workdir / "eval" / "samples"
  weights = parse_pairs("--weights", args.weights, known=weight_names())
  asked = parse_metrics(args.metrics)
  extractors = (name for metric in asked for name in METRICS[metric].extractors)
  known = tuple(dict.fromkeys((*asked, *extractors)))
  return Settings(
    samples=args.samples,
    reference=args.reference,
    weights={name: Path(path) for name, path in weights.items()},
    conventions=parse_pairs("--convention", args.convention, known=known),
    clip=ClipRule(
      start=args.clip, frames=args.frames, fps=args.fps, seed=args.seed,
      sequence_fps=args.sequence_fps,
    ),
    covariance=args.covariance,
    seed=args.seed,
    batch_size=args.batch_size,
    allow_small=args.allow_small,
    allow_missing=args.allow_missing,
    stats=args.stats,
    cache=args.cache,
    prompts=args.prompts if args.workdir is None else None,
    votes=args.votes,
    subset=args.subset,
    split=args.split,
    progress=lambda: Progress("items"),
  )  # fmt: skip


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
  size = f" of {p.frames} x {p.height} x {p.width}" if p.height else ""
  rate = f" at {p.fps:g} fps" if p.fps else ""
  counted = "counted as wrong" if score.verdicts else "left out"
  print(f"{name}  {p.count:,} samples{size}{rate}", end="")
  print(f", {p.missing} of them missing and {counted}" if p.missing else "")
  share = bool(score.verdicts)  # values of metrics that judge each sample are shares of them
  for key, value in score.values.items():
    change = ""
    if changes is not None:
      change = f"  {changes[key]:+7.1%}" if share else f"  {changes[key]:+.6g}"
    shown = f"{value:7.1%}" if share else f"{value:12.6g}"
    print(f"  {key:12}{shown}{change}")
  if p.extractor_digest:
    print(f"  protocol: {p.extractor}, version {p.extractor_version} ({p.extractor_digest[:12]});")
  read = f"{p.quantisation}; " if p.quantisation else ""
  print(f"  {read}reference {p.reference[:12] or 'none'}, samples {p.samples[:12]}")
  if p.details:
    shown = ", ".join(f"{k} {_spell(v)}" for k, v in p.details.items() if v not in (None, ""))
    print(f"  {shown}")


def _spell(value: Any) -> str:
  return json.dumps(value) if isinstance(value, dict | list) else f"{value}"

"""`vidgen data plan`: which samples each bucket of a config gets, and why others are in none."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.errors import DataError

if TYPE_CHECKING:
  import numpy as np

  from vidgen.inputs.choice import Choice
  from vidgen.inputs.config import Bucket
  from vidgen.inputs.samples import Source
  from vidgen.train.experiment import Experiment

SUMMARY = "say which samples each bucket of a config gets, and why others are dropped"
DESCRIPTION = (
  "Where buckets choose their samples by length, frame rate or size, measures every sample by its "
  "headers, once (DIR/clip_index), and says what each gets. Goes on if stopped; several may run at "
  "a time on one data set."
)
COLUMNS = {
  "bucket": "<", "frames x h x w": "<", "latents": "<", "seconds": ">", "fps": ">", "share": ">",
  "samples": ">", "batches an epoch": ">", "epochs of the run": ">",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action; further ones --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
  parser.add_argument("directory", type=Path, metavar="DIR")
  parser.add_argument("--config", required=True, metavar="FILE.py[:variant]", help="to be trained")
  parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures what was not, and prints a line for each bucket and each reason."""
  from vidgen.cli.progress import Progress
  from vidgen.config import load_config, parse_overrides
  from vidgen.inputs.choice import choose_samples, shares
  from vidgen.inputs.sources import open_source
  from vidgen.train.experiment import resolve

  experiment = resolve(load_config(args.config, parse_overrides(args.overrides)))
  buckets = experiment.inputs.buckets
  sources = {
    subset: open_source(args.directory, subset=subset, split=args.split)
    for subset in dict.fromkeys(bucket.subset for bucket in buckets)
  }
  choices = choose_samples(
    experiment.inputs, args.directory, sources=sources, progress=Progress("samples")
  )
  samples = {
    b.name: len(choices[b.subset].chosen[b.name] if b.subset in choices else sources[b.subset])
    for b in buckets
  }
  parts = shares(buckets, samples)
  train, latents = experiment.train, _latents(experiment)
  result: dict[str, Any] = {
    "directory": str(args.directory),
    "config": args.config,
    "split": args.split,
    "batch_size": train.batch_size,
    "steps": train.steps,
    "samples": {subset: len(source) for subset, source in sources.items()},
    "buckets": [
      {
        "bucket": b.name,
        "subset": b.subset,
        "shape": [b.frames, b.height, b.width],
        "latents": latents.get(b.name),
        **_ranges(b, choices.get(b.subset)),
        "share": parts[b.name],
        "samples": samples[b.name],
        "batches_an_epoch": samples[b.name] / train.batch_size,
        "epochs": train.steps * train.batch_size * parts[b.name] / max(1, samples[b.name]),
      }
      for b in buckets
    ],
    "dropped": {s: _dropped(choice, sources[s]) for s, choice in choices.items()},
  }
  print("\n".join(_table(result["buckets"])))
  for subset, reasons in result["dropped"].items():
    count = sum(entry["count"] for entry in reasons.values())
    print(f"{subset}: {len(sources[subset]):,} samples, {count:,} in no bucket")
    for reason, entry in reasons.items():
      print(f"  {entry['count']:,} {reason}, such as {entry['shard']} {entry['key']}")
  return result


def conclude(args: argparse.Namespace, result: dict[str, Any]) -> None:
  """Ends the command with exit code 3 if no bucket has a sample, once that has been written.

  Raises:
    DataError: none has.
  """
  if not any(bucket["samples"] for bucket in result["buckets"]):
    raise DataError(
      f"{args.directory}: no {args.split} sample is for any bucket of {args.config}; change the "
      "bounds of config.inputs.buckets, or the data"
    )


def _ranges(bucket: "Bucket", choice: "Choice | None") -> dict[str, Any]:
  """From what to what the clips of a bucket last, and are sampled; None where it is not known."""
  seconds, rates = None, [bucket.fps, bucket.fps]
  if choice is not None and bucket.frames > 1:
    lengths: np.ndarray = choice.seconds[choice.chosen[bucket.name]]
    if len(lengths):
      seconds = [float(lengths.min()), float(lengths.max())]
      rates = sorted(bucket.span().rate(length) for length in seconds)
  return {"seconds": seconds, "fps": rates}


def _dropped(choice: "Choice", source: "Source") -> dict[str, Any]:
  """How many samples are in no bucket, by reason, and the first of each."""
  found = {}
  for reason, numbers in choice.dropped.items():
    shard, key = source.name(int(numbers[0]))
    found[reason] = {"count": len(numbers), "shard": shard, "key": key}
  return found


def _latents(experiment: "Experiment") -> dict[str, list[int]]:
  """The shape t, h, w, c of a sample's latents by bucket, of a stage that is trained on them."""
  from vidgen.systems import make_stage

  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  shapes = {}
  for bucket in experiment.inputs.buckets:
    if bucket.name in stage.buckets and "latents" in (spec := stage.batch_spec(1, bucket.name)):
      shapes[bucket.frames, bucket.height, bucket.width] = list(spec["latents"].shape[1:])
  return {
    b.name: shapes[b.frames, b.height, b.width]
    for b in experiment.inputs.buckets
    if (b.frames, b.height, b.width) in shapes
  }


def _table(buckets: list[dict[str, Any]]) -> list[str]:
  """One line a bucket, below their titles."""
  rows = [list(COLUMNS)]
  rows += [
    [
      b["bucket"],
      "x".join(map(str, b["shape"])),
      "x".join(map(str, b["latents"] or ["-"])),
      _range(b["seconds"]),
      _range(b["fps"]) if b["shape"][0] > 1 else "-",
      f"{b['share']:.1%}",
      f"{b['samples']:,}",
      f"{b['batches_an_epoch']:,.1f}",
      f"{b['epochs']:,.2f}",
    ]
    for b in buckets
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      f"{cell:{side}{width}}"
      for cell, width, side in zip(row, widths, COLUMNS.values(), strict=True)
    ).rstrip()
    for row in rows
  ]


def _range(ends: list[float] | None) -> str:
  if ends is None:
    return "-"
  first, last = (f"{end:.4g}" for end in ends)
  return first if first == last else f"{first}-{last}"

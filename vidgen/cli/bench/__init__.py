"""`vidgen bench [KIND]`: how fast the parts of a run are here, and what memory they take.

Kinds: `step` (also without a KIND: the train step alone against the step in the loop, and the input
pipeline alone), `attention` and `block` (networks of any size, from the numbers on the command
line), `sampler`, `loader` and `checkpoint` (what a config has of them).

Every record says on which devices, with which versions and at what sizes it was measured. Warm-up
is no part of the times, and what the compiler takes is a figure of its own. FLOP/s count the
model's operations once, whatever is computed again to save memory; utilisation (MFU) is given of
the peak in bfloat16, where that is known.
"""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TINY = "configs/movie_gen/t2v_256.py:tiny"
TIMED = {"warmup": 2, "repeats": 10}
SHAPE = {"width": 256, "heads": 4, "tokens": 256, "batch_size": 1, "dtype": "float32"}


@dataclasses.dataclass(frozen=True)
class Kind:
  """What measures (`module.function`), and the options it has, with their defaults."""

  module: str
  function: str
  options: Mapping[str, Any]
  takes_overrides: bool = True


KINDS = {
  "step": Kind(
    "step", "measure_step", {"config": TINY, "data": None, "steps": 60, "warmup": 3}
  ),
  "attention": Kind(
    "network", "measure_attention", {**TIMED, **SHAPE, "kernel": "auto"}, takes_overrides=False
  ),
  "block": Kind(
    "network", "measure_block",
    {**TIMED, **SHAPE, "kernel": "auto", "mlp_width": 704, "layers": 2, "text_tokens": 64,
     "remat": "none", "scan_unroll": 1},
    takes_overrides=False,
  ),
  "sampler": Kind(
    "stage", "measure_sampler", {"config": TINY, "batch_size": 4, "warmup": 1, "repeats": 3}
  ),
  "loader": Kind(
    "loader", "measure_loader", {"config": TINY, "data": None, "warmup": 8, "repeats": 16}
  ),
  "checkpoint": Kind("stage", "measure_checkpoint", {"config": TINY, "repeats": 3}),
}  # fmt: skip

# option -> (type or choices, metavar, help)
OPTIONS = {
  "config": (str, "FILE.py[:variant]", "what is trained or sampled"),
  "data": (str, "DIR", "the data set; without, `step` makes batches up and `loader` builds one"),
  "steps": (int, "N", "steps of each kind"),
  "warmup": (int, "N", "what goes before the timing: steps (an epoch, to time cached data), calls"),
  "repeats": (int, "N", "calls, batches or checkpoints that are timed"),
  "batch_size": (int, "N", "examples of a call"),
  "width": (int, "N", "of the network"),
  "heads": (int, "N", "of attention"),
  "tokens": (int, "N", "of a clip"),
  "text_tokens": (int, "N", "of a caption"),
  "mlp_width": (int, "N", "of the gated layer"),
  "layers": (int, "N", "of the network"),
  "dtype": (("float32", "bfloat16"), None, "of activations and matrix products"),
  "kernel": (("auto", "dense", "flash", "cudnn", "splash"), None, "of attention"),
  "remat": (str, "POLICY", "what the backward pass computes again"),
  "scan_unroll": (int, "N", "layers of one turn of the scan"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the verb; further ones of the form --config.key=value override the config."""
  parser.set_defaults(takes_overrides=True)
  parser.add_argument("kind", nargs="?", default="step", choices=KINDS, help="default: step")
  for name, (kind, metavar, text) in OPTIONS.items():
    users = {k: use.options[name] for k, use in KINDS.items() if name in use.options}
    defaults = ", ".join(f"{k} {'-' if v is None else v}" for k, v in users.items())
    how: dict[str, Any] = {"type": kind} if callable(kind) else {"choices": kind}
    flag = f"--{name.replace('_', '-')}"
    parser.add_argument(flag, metavar=metavar, help=f"{text} ({defaults})", **how)
  parser.add_argument("--json", metavar="FILE", help="write the figures there")


def run(args: argparse.Namespace) -> None:
  """Measures and prints.

  Raises:
    ConfigError: an option that the kind does not have, or a value out of range.
  """
  from vidgen.dist import flags

  print(*flags.apply(), sep="\n")  # before jax is imported

  from vidgen.cli.bench.record import memory, surroundings

  kind, settings = KINDS[args.kind], settings_of(args)
  module = importlib.import_module(f"vidgen.cli.bench.{kind.module}")
  figures, lines = getattr(module, kind.function)(settings, args.overrides)
  figures = {"kind": args.kind, **surroundings(), **figures, **memory()}
  for line in lines:
    print(line)
  peaks = {name: figures[f"peak_{name}_bytes"] for name in ("host", "device")}
  print("peak memory    " + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in peaks.items() if b))
  if args.json:
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


def settings_of(args: argparse.Namespace) -> argparse.Namespace:
  """The options of the kind: those given, and the defaults of the rest.

  Raises:
    ConfigError: one is given that the kind does not have, or a number that is no count.
  """
  from vidgen.errors import ConfigError

  kind = KINDS[args.kind]
  given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
  for name, value in given.items():
    flag = f"--{name.replace('_', '-')}"
    if name not in kind.options:
      raise ConfigError(f"{flag} is no option of `vidgen bench {args.kind}`; see --help")
    if isinstance(value, int) and value < 1:
      raise ConfigError(f"{flag} must be at least 1")
  if args.overrides and not kind.takes_overrides:
    raise ConfigError(f"unknown argument {args.overrides[0]!r}; {args.kind} takes no config")
  return argparse.Namespace(**{**kind.options, **given})

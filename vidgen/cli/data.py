"""`vidgen data build`, `vidgen data check` and `vidgen data embed`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.errors import ConfigError, DataError

if TYPE_CHECKING:
  from vidgen.inputs.config import EncoderSource
  from vidgen.train.experiment import Experiment

ENCODER = "NAME=FOLDER[,length=N][,reads=caption|quoted][,dtype=...][,tokenizer=PATH][,prefix=TEXT]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the actions with their arguments."""
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
  embed = actions.add_parser(
    "embed",
    help="write text embeddings beside a dataset; goes on if stopped",
    description="Writes what frozen text encoders make of every caption, train and held out, in "
    "bfloat16 and cut to the true length, for config.inputs.embeddings to name. Says how large it "
    "will be before it writes.",
  )
  embed.add_argument("directory", type=Path, metavar="DIR")
  which = embed.add_mutually_exclusive_group(required=True)
  which.add_argument(
    "--encoder", action="append", metavar=ENCODER,
    help="a text stream of the stage, and the encoder's Hugging Face folder; may be repeated. "
    "The prefix, such as UL2's '[S2S] ', comes last and may hold commas",
  )  # fmt: skip
  which.add_argument(
    "--config", metavar="FILE.py[:variant]", help="take the encoders of this config to train"
  )
  embed.add_argument("--out", type=Path, metavar="DIR", help="where to (default: DIR/embeddings)")
  embed.add_argument("--batch-size", type=_positive, default=64, help="texts encoded at once")
  embed.add_argument(
    "--part", type=_part, default=(0, 1), metavar="I/N",
    help="only every N-th shard, from the I-th (0 is the first), for N processes side by side",
  )  # fmt: skip
  embed.add_argument("--dry-run", action="store_true", help="say how large it will be, no more")
  for action in (build, check, embed):
    action.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    action.add_argument(
      "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def _part(text: str) -> tuple[int, int]:
  index, count = (int(number) for number in text.split("/"))
  if not 0 <= index < count:
    raise ValueError
  return index, count


def run(args: argparse.Namespace) -> None:
  """Builds, checks or embeds."""
  result = {"build": _build, "check": _check, "embed": _embed}[args.action](args)
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


def _embed(args: argparse.Namespace) -> dict:
  from vidgen.dist import flags

  flags.apply()  # before jax is imported

  from vidgen.cli.progress import Progress
  from vidgen.inputs import embed
  from vidgen.inputs.embeddings import FOLDER
  from vidgen.train.encoded import check_streams

  out = args.out or args.directory / FOLDER
  experiment = _experiment(args.config) if args.config else None
  sources = experiment.inputs.encoders if experiment else _sources(args.encoder)
  streams = embed.describe_streams(sources, out=out)
  if experiment:
    check_streams(experiment, {name: one.identity for name, one in streams.items()})
  work = embed.work_of(args.directory, streams, part=args.part)
  sizes = embed.measure(work, streams, progress=Progress("shards"))
  total = sum(size.bytes for size in sizes.values())
  for name, size in sizes.items():
    print(
      f"{name}: {size.shards} shards, {size.texts:,} texts, {size.tokens:,} tokens of width "
      f"{streams[name].identity['width']}, {size.bytes / 2**20:,.1f} MiB; "
      f"{size.cut:,} texts fill all {streams[name].source.length} tokens, or are cut to them"
    )
  print(f"{out}: {total / 2**20:,.1f} MiB to write" + (" (dry run)" if args.dry_run else ""))
  result: dict[str, Any] = {
    "out": str(out),
    "bytes": total,
    "streams": {n: {**vars(sizes[n]), "identity": dict(streams[n].identity)} for n in streams},
  }
  if args.dry_run:
    return result
  lost = _write_embeddings(args, work, streams)
  for name, count in lost.items():
    result["streams"][name]["without_caption"] = count
    if count:
      print(f"{name}: {count} samples have no caption, and no embedding")
  return result


def _write_embeddings(args: argparse.Namespace, work: Any, streams: Any) -> dict[str, int]:
  """Loads the encoders onto this process's devices, and encodes."""
  import jax

  from vidgen.cli.progress import Progress
  from vidgen.dist.mesh import MeshConfig, make_mesh
  from vidgen.inputs import embed
  from vidgen.inputs.encoders import open_encoder

  devices = jax.local_devices()
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices=devices)
  encoders = {n: open_encoder(n, stream.source, mesh=mesh) for n, stream in streams.items()}
  whole = -(-args.batch_size // len(devices)) * len(devices)
  return embed.embed(work, streams, encoders, batch_size=whole, progress=Progress("samples"))


def _experiment(config: str) -> "Experiment":
  """The experiment of a config, which names encoders."""
  from vidgen.config import load_config
  from vidgen.train.experiment import resolve

  experiment = resolve(load_config(config))
  if not experiment.inputs.encoders:
    raise ConfigError(f"config {config}: inputs.encoders names none")
  return experiment


def _sources(arguments: list[str]) -> "dict[str, EncoderSource]":
  """The encoders that `--encoder` names.

  Raises:
    ConfigError: names the argument that is wrong.
  """
  sources = {}
  for text in arguments:
    name, source = encoder_source(text)
    if name in sources:
      raise ConfigError(f"--encoder: {name!r} is given twice")
    sources[name] = source
  return sources


def encoder_source(text: str) -> "tuple[str, EncoderSource]":
  """The name and the encoder that `NAME=FOLDER[,length=N][,...]` says.

  Raises:
    ConfigError: another form; or no length, of an encoder that has none by itself (CLIP has).
  """
  import dataclasses

  from vidgen.config import build
  from vidgen.inputs.config import EncoderSource
  from vidgen.inputs.streams import encoder_network

  head, mark, prefix = text.partition(",prefix=")
  first, *options = head.split(",")
  name, equals, folder = first.partition("=")
  if not (name.isidentifier() and equals and folder):
    raise ConfigError(f"--encoder {text!r}: expected {ENCODER}")
  fields: dict[str, Any] = {"folder": folder}
  for option in options:
    key, equals, value = option.partition("=")
    if not equals or key in fields:
      raise ConfigError(f"--encoder {text!r}: expected {ENCODER}")
    fields[key] = int(value) if key == "length" and value.isdecimal() else value
  if mark:
    fields["prefix"] = prefix
  given = "length" in fields
  source = build(EncoderSource, {"length": 2, **fields}, path=f"--encoder {name}")
  if not given:
    longest = getattr(encoder_network(source)[1], "max_length", None)
    if longest is None:
      raise ConfigError(f"--encoder {name}: needs length=N, the tokens that the stage reads")
    source = dataclasses.replace(source, length=longest)
  return name, source

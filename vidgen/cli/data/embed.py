"""`vidgen data embed`: text embeddings beside a dataset."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.data.arguments import part, positive
from vidgen.errors import ConfigError

if TYPE_CHECKING:
  from vidgen.inputs.config import EncoderSource
  from vidgen.train.experiment import Experiment

SUMMARY = "write text embeddings beside a dataset; goes on if stopped"
DESCRIPTION = (
  "Writes what frozen text encoders make of every caption, train and held out, in bfloat16 and cut "
  "to the true length, for config.inputs.embeddings to name. Says how large it will be before it "
  "writes."
)
ENCODER = "NAME=FOLDER[,length=N][,reads=caption|quoted][,dtype=...][,tokenizer=PATH][,prefix=TEXT]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of the action."""
  parser.add_argument("directory", type=Path, metavar="DIR")
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument(
    "--encoder", action="append", metavar=ENCODER,
    help="a text stream of the stage, and the encoder's Hugging Face folder; may be repeated. "
    "The prefix, such as UL2's '[S2S] ', comes last and may hold commas",
  )  # fmt: skip
  which.add_argument(
    "--config",
    metavar="FILE.py[:variant]",
    help="take the encoders of this config to train, and embed captions behind its inputs.prefix",
  )
  parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: DIR/embeddings)")
  parser.add_argument("--batch-size", type=positive, default=64, help="texts encoded at once")
  parser.add_argument(
    "--part", type=part, default=(0, 1), metavar="I/N",
    help="only every N-th shard, from the I-th (0 is the first), for N processes side by side",
  )  # fmt: skip
  parser.add_argument("--dry-run", action="store_true", help="say how large it will be, no more")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, and unless it is a dry run encodes."""
  from vidgen.dist import flags

  flags.apply()  # before jax is imported

  from vidgen.cli.progress import Progress
  from vidgen.inputs import embed
  from vidgen.inputs.embeddings import FOLDER
  from vidgen.train.encoded import check_streams

  out = args.out or args.directory / FOLDER
  experiment = _experiment(args.config) if args.config else None
  sources = experiment.inputs.encoders if experiment else _sources(args.encoder)
  prefixes = embed.config_prefixes(experiment.inputs) if experiment else embed.EVERYTHING
  streams = embed.describe_streams(sources, out=out, prefixes=prefixes)
  if experiment:
    check_streams(experiment, {one.name: one.identity for one in streams.values()})
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
  sources = {stream.name: stream.source for stream in streams.values()}
  encoders = {name: open_encoder(name, source, mesh=mesh) for name, source in sources.items()}
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

"""Writes the embeddings of every caption of a data set (`embeddings` says where they lie).

Shard by shard, so memory does not grow with the data set, and what is there already is kept. Texts
are sorted by length and padded to few lengths, so that little is computed on padding. A text that
occurs several times in a shard is encoded and stored once.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.array_cache import (
  IDENTITY,
  ShardPart,
  about,
  check_identity,
  data_parts,
  is_there,
  shard_parts,
  write_identity,
  writing,
)
from vidgen.inputs.array_shards import ArrayWriter, file_bytes
from vidgen.inputs.config import EncoderSource, InputConfig
from vidgen.inputs.embeddings import FOLDER, KIND, STORED, source_bytes, text_of
from vidgen.inputs.encoders import TextEncoder
from vidgen.inputs.prefix import Prefix, bucket_prefix
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample, Source
from vidgen.inputs.sources import text_reader
from vidgen.inputs.streams import encoder_identity, tokenizer_of
from vidgen.inputs.text import Tokenizer, encode_padded, token_mask

SHORTEST = 16  # tokens: texts are padded to this, twice this, and so on
READERS = 8  # threads that read captions
EVERYTHING: Mapping[Prefix, frozenset[str] | None] = types.MappingProxyType({Prefix(): None})


@dataclasses.dataclass(frozen=True)
class Stream:
  """A text encoder as far as it is known without its weights, and where its embeddings go.

  They are of captions behind a `prefix`, and of these `subsets` of the data (None: all).
  """

  name: str
  source: EncoderSource
  tokenizer: Tokenizer
  identity: Mapping[str, Any]
  folder: Path
  prefix: Prefix = Prefix()
  subsets: frozenset[str] | None = None


@dataclasses.dataclass(frozen=True)
class Work:
  """A shard, and the streams that are still to be written for it."""

  source: Source
  part: ShardPart
  streams: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Size:
  """What is to be written of one stream: different texts a shard, their tokens, bytes on disk."""

  shards: int = 0
  texts: int = 0
  tokens: int = 0
  cut: int = 0
  bytes: int = 0


def config_prefixes(config: InputConfig) -> dict[Prefix, frozenset[str] | None]:
  """What the captions of a config have before them, and in which subsets; without one in all.

  Raises:
    ConfigError: the clips of a bucket have a rate each.
  """
  if not config.prefix:
    return {Prefix(): None}
  try:
    dataclasses.replace(config, embeddings=FOLDER)
  except ValueError as error:
    raise ConfigError(f"config.inputs.{error}") from error
  found: dict[Prefix, set[str]] = {}
  for bucket in config.buckets:
    found.setdefault(bucket_prefix(config, bucket), set()).add(bucket.subset)
  return {prefix: frozenset(subsets) for prefix, subsets in found.items()}


def describe_streams(
  sources: Mapping[str, EncoderSource],
  *,
  out: str | Path,
  prefixes: Mapping[Prefix, frozenset[str] | None] = EVERYTHING,
) -> dict[str, Stream]:
  """The streams of these encoders, below `out`, by the names of their folders there.

  `prefixes` are what goes before captions, and in which subsets, as `config_prefixes` has them.

  Raises:
    ConfigError: an encoder has no folder, or it is not there.
    CheckpointError: an encoder or a tokenizer is damaged.
    DataError: embeddings of another encoder lie there.
  """
  streams = {}
  for name, source in sources.items():
    if not source.folder:
      raise ConfigError(f"encoder {name}: needs a folder with its weights")
    tokenizer = tokenizer_of(source)
    identity = encoder_identity(source, tokenizer)
    for prefix, subsets in prefixes.items():
      folder = Path(out) / name / prefix.folder
      whole = {**identity, **prefix.identity}
      key = folder.relative_to(out).as_posix()
      streams[key] = Stream(name, source, tokenizer, whole, folder, prefix, subsets)
      if (folder / IDENTITY).exists():
        check_identity(folder, whole, kind=KIND)
  return streams


def work_of(
  directory: str | Path, streams: Mapping[str, Stream], *, part: tuple[int, int] = (0, 1)
) -> list[Work]:
  """The shards that have no embeddings yet, or stale ones; of (i, n), every n-th from the i-th."""
  found, number = [], 0
  for place, source in data_parts(directory):
    subset = place.rpartition("/")[0]
    wanted = {
      name: stream
      for name, stream in streams.items()
      if stream.subsets is None or not subset or subset in stream.subsets
    }
    for shard in shard_parts(source):
      if number % part[1] == part[0]:
        missing = tuple(
          name
          for name, stream in wanted.items()
          if not is_there(shard, stream.folder, identity=stream.identity)
        )
        found += [Work(source, shard, missing)] if missing else []
      number += 1
  return found


def measure(
  work: Sequence[Work],
  streams: Mapping[str, Stream],
  *,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Size]:
  """How much is to be written, by reading and tokenizing every caption."""
  sizes = {name: Size() for name in streams}
  for done, one in enumerate(work):
    progress(done, len(work))
    samples = _samples(one)
    for name in one.streams:
      stream, size = streams[name], sizes[name]
      texts = _rows_by_text(_captions(samples, stream), stream)
      lengths = [len(_ids(stream, text)) for text in texts]
      tokens = sum(lengths)
      payload = tokens * stream.identity["width"] * np.dtype(np.uint16).itemsize
      said = about(one.part, identity=stream.identity)
      sizes[name] = Size(
        size.shards + 1,
        size.texts + len(texts),
        size.tokens + tokens,
        size.cut + sum(n == stream.source.length for n in lengths),
        size.bytes
        + file_bytes(said, payload=payload, samples=one.part.samples, dtype=STORED, ndim=2),
      )
  progress(len(work), len(work))
  return sizes


def embed(
  work: Sequence[Work],
  streams: Mapping[str, Stream],
  encoders: Mapping[str, TextEncoder],
  *,
  batch_size: int = 64,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
  """Writes what is missing; returns by stream how many samples had no caption to embed.

  `encoders` are by the streams' own names.

  Raises:
    CheckpointError: an encoder makes values that are not finite.
  """
  lost = dict.fromkeys(streams, 0)
  total = sum(one.part.samples for one in work)
  for stream in streams.values():
    write_identity(stream.folder, stream.identity)
  done = 0
  progress(done, total)
  for one in work:
    samples = _samples(one)
    for name in one.streams:
      stream = streams[name]
      captions = _captions(samples, stream)
      texts = _rows_by_text(captions, stream)
      _write(one.part, texts, stream, encoders[stream.name], batch_size=batch_size)
      lost[name] += captions.count(None)
    done += one.part.samples
    progress(done, total)
  return lost


def _samples(work: Work) -> list[Sample]:
  """The text and the json of a shard's samples; media are left unread where they can be."""
  part, read = work.part, text_reader(work.source)

  def text(index: int) -> Sample:
    try:
      sample = read(index)
    except BadSample:
      return {}
    return {name: sample[name] for name in ("txt", "json") if name in sample}

  with ThreadPoolExecutor(READERS) as pool:
    return list(pool.map(text, range(part.start, part.start + part.samples)))


def _captions(samples: Sequence[Sample], stream: Stream) -> list[str | None]:
  """What a stream reads of each, None where there is no caption."""
  captions: list[str | None] = []
  for sample in samples:
    try:
      captions.append(stream.prefix.caption(sample))
    except BadSample:
      captions.append(None)
  return captions


def _rows_by_text(captions: Sequence[str | None], stream: Stream) -> dict[str, list[int]]:
  """Every text that the encoder reads, and the samples of the shard that have it."""
  rows: dict[str, list[int]] = {}
  for row, caption in enumerate(captions):
    if caption is not None:
      rows.setdefault(text_of(caption, reads=stream.source.reads), []).append(row)
  return rows


def _ids(stream: Stream, text: str) -> np.ndarray:
  """The token ids up to and with the end, int32."""
  tokens = encode_padded(stream.tokenizer, text, length=stream.source.length)
  return tokens[token_mask(tokens, end=stream.tokenizer.end)]


def _write(
  part: ShardPart,
  texts: Mapping[str, list[int]],
  stream: Stream,
  encoder: TextEncoder,
  *,
  batch_size: int,
) -> None:
  with writing(part, stream.folder) as temporary:
    writer = ArrayWriter(temporary, samples=part.samples, dtype=STORED, ndim=2)
    try:
      for batch in _batches(texts, stream, batch_size=batch_size):
        for text, array in _encoded(batch, encoder, stream, batch_size=batch_size):
          writer.add(texts[text], array, source=source_bytes(text))
      writer.close(about(part, identity=stream.identity))
    finally:
      writer.abandon()


_Batch = list[tuple[str, np.ndarray]]  # a text and its ids


def _batches(texts: Mapping[str, Any], stream: Stream, *, batch_size: int) -> Iterator[_Batch]:
  """Batches of texts that are padded to one length, the shortest first."""
  by_length: dict[int, _Batch] = {}
  for text in texts:
    ids = _ids(stream, text)
    by_length.setdefault(padded_length(len(ids), most=stream.source.length), []).append((text, ids))
  for length in sorted(by_length):
    group = by_length[length]
    yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))


def padded_length(tokens: int, *, most: int) -> int:
  """The length that a text of so many tokens is padded to."""
  length = SHORTEST
  while length < tokens:
    length *= 2
  return min(length, most)


def _encoded(
  batch: _Batch, encoder: TextEncoder, stream: Stream, *, batch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Each text and its embedding; the batch is filled up, so that few programs are compiled."""
  length = padded_length(max(len(ids) for _, ids in batch), most=stream.source.length)
  tokens = np.full((batch_size, length), stream.tokenizer.pad, np.int32)
  tokens[:, 0] = stream.tokenizer.end
  for row, (_, ids) in enumerate(batch):
    tokens[row, : len(ids)] = ids
  mask = token_mask(tokens, end=stream.tokenizer.end)
  made = np.asarray(encoder.of_rows(tokens, mask, batch_size=batch_size))
  if not np.isfinite(made).all():
    raise CheckpointError(f"text encoder {encoder.name!r}: makes values that are not finite")
  for row, (text, ids) in enumerate(batch):
    yield text, made[row, : len(ids)]

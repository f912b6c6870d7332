"""Writes the latents of every sample of a data set (`latents` says where they lie).

Shard by shard, so memory does not grow with the data set, and what is there already is kept: of a
shard whose buckets have got more samples, the others are not encoded again. Clips are decoded by
threads while others are encoded.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError, DataError
from vidgen.inputs.array_cache import (
  IDENTITY,
  ShardPart,
  about,
  check_identity,
  is_there,
  shard_parts,
  write_identity,
  writing,
)
from vidgen.inputs.array_shards import ArrayShard, ArrayWriter, file_bytes
from vidgen.inputs.choice import choose_samples
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.latents import (
  KIND,
  latents_folder,
  latents_identity,
  problem_fields,
  sample_bytes,
)
from vidgen.inputs.loader import still_frames
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import NoSuchSplit, Source
from vidgen.inputs.sources import open_source
from vidgen.inputs.transforms import to_unit_range

NDIM = 4  # t h w c
AHEAD = 2  # clips that are decoded before they are needed, by each thread

Encode = Callable[[np.ndarray], np.ndarray]  # [b t h w 3] in [-1, 1] to normalised [b t h w c]
ShapeOf = Callable[[Bucket], tuple[int, ...]]  # t h w c of the latents of one clip


@dataclasses.dataclass(frozen=True)
class Cache:
  """The latents of one bucket in one split: of which samples, and where they go.

  `chosen` are the numbers of the samples that the bucket has, ascending; None for all.
  """

  bucket: Bucket
  config: InputConfig
  source: Source
  chosen: np.ndarray | None
  identity: Mapping[str, Any]
  folder: Path

  def rows(self, part: ShardPart) -> list[int]:
    """The rows of a shard that are the bucket's."""
    if self.chosen is None:
      return list(range(part.samples))
    first, last = np.searchsorted(self.chosen, [part.start, part.start + part.samples])
    return (self.chosen[first:last] - part.start).tolist()


@dataclasses.dataclass(frozen=True)
class Work:
  """A shard that is still to be written, and those of its rows that are to be encoded."""

  cache: Cache
  part: ShardPart
  rows: Sequence[int]

  @property
  def bytes(self) -> int:
    """What the file takes if all samples are good ones."""
    identity = self.cache.identity
    dtype, count = identity["autoencoder"]["dtype"], len(self.cache.rows(self.part))
    payload = count * int(np.prod(identity["shape"])) * (2 if dtype == "bfloat16" else 4)
    said = {**about(self.part, identity=identity), "bad": {}}
    return file_bytes(said, payload=payload, samples=self.part.samples, dtype=dtype, ndim=NDIM)


def describe_caches(
  configs: Mapping[str, InputConfig],
  directory: str | Path,
  *,
  out: str | Path,
  autoencoder: Mapping[str, Any],
  shape_of: ShapeOf,
) -> list[Cache]:
  """The caches of all buckets, below `out`; `configs` say by split how its samples are read.

  Raises:
    DataError: there are no such data, or latents that were made otherwise lie there.
  """
  caches = []
  for split, config in configs.items():
    sources = {}
    for subset in dict.fromkeys(bucket.subset for bucket in config.buckets):
      try:
        sources[subset] = open_source(directory, subset=subset, split=split)
      except NoSuchSplit:
        if split == "train":
          raise
    choices = choose_samples(config, directory, sources=sources)
    for bucket in config.buckets:
      if bucket.subset not in sources:
        continue
      shape = shape_of(bucket)
      identity = latents_identity(bucket, config, autoencoder=autoencoder, shape=shape)
      folder = latents_folder(Path(out), bucket=bucket.name, split=split)
      if (folder / IDENTITY).exists():
        check_identity(folder, identity, kind=KIND)
      choice = choices.get(bucket.subset)
      chosen = None if choice is None else choice.chosen[bucket.name]
      caches.append(Cache(bucket, config, sources[bucket.subset], chosen, identity, folder))
  return caches


def work_of(caches: Sequence[Cache], *, part: tuple[int, int] = (0, 1)) -> list[Work]:
  """The shards whose latents are missing or stale; of (i, n), every n-th shard from the i-th."""
  found, number = [], itertools.count()
  for cache in caches:
    for shard in shard_parts(cache.source):
      if next(number) % part[1] != part[0]:
        continue
      old = _written(cache, shard)
      bad = {} if old is None else old.about["bad"]
      rows = [
        row for row in cache.rows(shard) if old is None or not (old.has(row) or str(row) in bad)
      ]
      if rows or old is None:
        found.append(Work(cache, shard, rows))
  return found


def _written(cache: Cache, part: ShardPart) -> ArrayShard | None:
  if not is_there(part, cache.folder, identity=cache.identity):
    return None
  return ArrayShard(part.path(cache.folder))


def encode_samples(
  work: Sequence[Work],
  encode: Encode,
  *,
  batch_size: int,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, str], str]:
  """Writes what is missing; returns by shard and key the samples that cannot be used, and why.

  `encode` is given `batch_size` clips at a time.

  Raises:
    CheckpointError: the autoencoder makes values that are not finite.
    DataError: the storage failed.
  """
  bad: dict[tuple[str, str], str] = {}
  done, total = 0, sum(len(one.rows) for one in work)
  progress(done, total)
  for one in work:
    write_identity(one.cache.folder, one.cache.identity)
    bad |= _write(one, encode, batch_size=batch_size)
    done += len(one.rows)
    progress(done, total)
  return bad


def _write(work: Work, encode: Encode, *, batch_size: int) -> dict[tuple[str, str], str]:
  cache, part = work.cache, work.part
  dtype = cache.identity["autoencoder"]["dtype"]
  named: dict[tuple[str, str], str] = {}
  with writing(part, cache.folder) as temporary:
    writer = ArrayWriter(temporary, samples=part.samples, dtype=dtype, ndim=NDIM)
    try:
      bad, lost = _keep(writer, work)
      clips = _clips(work, sorted({*work.rows, *lost}))
      while batch := list(itertools.islice(clips, batch_size)):
        good = []
        for row, found in batch:
          if isinstance(found, BadSample):
            bad[str(row)] = problem_fields(found)
            named[cache.source.name(part.start + row)] = found.reason
          else:
            good.append((row, found))
        for row, latents in _encoded(good, encode, work, batch_size=batch_size):
          writer.add([row], latents, source=_source(work, row))
      writer.close({**about(part, identity=cache.identity), "bad": bad})
    finally:
      writer.abandon()
  return named


def _keep(writer: ArrayWriter, work: Work) -> tuple[dict[str, Any], list[int]]:
  """Takes over what is there of a shard: its bad samples, and the rows that are damaged."""
  old = _written(work.cache, work.part)
  if old is None:
    return {}, []
  lost = []
  for row in range(len(old)):
    if old.has(row):
      try:
        array = old.read(row, source=_source(work, row))
      except DataError:
        lost.append(row)
      else:
        writer.add([row], array, source=_source(work, row))
  return dict(old.about["bad"]), lost


def _source(work: Work, row: int) -> bytes:
  return sample_bytes(work.cache.source.name(work.part.start + row))


def _clips(work: Work, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray | BadSample]]:
  """Frames of each row, uint8 [t, h, w, 3], or why it has none; read ahead by threads."""
  cache, part = work.cache, work.part
  threads = max(1, cache.config.threads)

  def read(row: int) -> np.ndarray | BadSample:
    try:
      return still_frames(cache.source[part.start + row], cache.bucket, config=cache.config)
    except BadSample as error:
      return error.fresh()
    except DataError:
      raise  # the storage, which it names
    except Exception as error:
      shard, key = cache.source.name(part.start + row)
      raise DataError(f"shard {shard}, key {key!r}: {type(error).__name__}: {error}") from error

  ahead: collections.deque[tuple[int, Future[np.ndarray | BadSample]]] = collections.deque()
  with ThreadPoolExecutor(threads) as pool:
    for row in rows:
      ahead.append((row, pool.submit(read, row)))
      if len(ahead) > AHEAD * threads:
        first, clip = ahead.popleft()
        yield first, clip.result()
    for first, clip in ahead:
      yield first, clip.result()


def _encoded(
  clips: Sequence[tuple[int, np.ndarray]], encode: Encode, work: Work, *, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Each row and its latents; the batch is filled up, so that one program is compiled."""
  if not clips:
    return
  frames = [clip for _, clip in clips]
  video = np.stack(frames + frames[-1:] * (batch_size - len(frames)))
  made = encode(to_unit_range(video))[: len(frames)]
  if not np.isfinite(made).all():
    raise CheckpointError("the autoencoder makes latents that are not finite")
  if list(made.shape[1:]) != work.cache.identity["shape"]:
    raise CheckpointError(f"the autoencoder makes latents of {made.shape[1:]}, not as it said")
  yield from ((row, latents) for (row, _), latents in zip(clips, made, strict=True))

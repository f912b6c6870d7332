"""`check_dataset`: every shard indexed, every sample decoded in full, once, every digest compared.

Decoding does not find every flipped bit: most of a JPEG or MP4 decodes to something, whatever it
holds. So a shard is also compared with the sha256 that `write_shard` states beside it. (The
"sha256" in the metadata of img2dataset is of what was downloaded, not of what is stored.)
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from vidgen.errors import DataError
from vidgen.inputs.decode import (
  AUDIO,
  IMAGE,
  VIDEO,
  Limits,
  decode_audio,
  decode_video,
)
from vidgen.inputs.decode_image import decode_image
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample, Source
from vidgen.inputs.sources import open_source
from vidgen.inputs.storage import file_sha256, patiently
from vidgen.inputs.writers import stats_path

PREVIEW = (32, 32)  # frames are scaled to this while all of them are decoded: bounded memory
CHUNK = 64  # samples a process takes at a time

_Chunk = tuple[str, int]  # a subset and the first of its samples
_shared: tuple[dict[str, Source], Limits] = ({}, Limits())  # of a process that checks


def check_dataset(
  directory: str | os.PathLike[str],
  *,
  processes: int | None = None,
  limits: Limits | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Decodes all of a data set and says what is in it and what is wrong.

  Returns a JSON dict: "subsets": {"video/train": {"samples", "bad", "frames", "seconds", "bytes",
  "shards": [...], "sha256"}}, "samples", "bad": [{"shard", "key", "reason"}]. The
  sha256 of a subset covers every member of every good sample, in order. `progress` is called with
  (samples done, samples in all). Shards that dataset.json lists are for `build.verify_shards` to
  compare.

  Raises:
    DataError: there is no data set, or one of its shards cannot be opened at all.
  """
  limits = limits or Limits()
  processes = processes or os.cpu_count() or 1
  sources = dict(_sources(Path(directory)))
  total = sum(len(source) for source in sources.values())
  found = {name: _Subset(source) for name, source in sources.items()}
  chunks = [(n, i) for n, source in sources.items() for i in range(0, len(source), CHUNK)]
  done = 0
  for name, results in _check_chunks(sources, chunks, limits=limits, processes=processes):
    found[name].add(results)
    done += len(results)
    if progress is not None:
      progress(done, total)
  listed = _listed(Path(directory) / "dataset.json")
  for subset in found.values():
    shards = [shard for shard in subset.source.shards if shard not in listed]
    subset.bad += map(_entry, _wrong_digests(Path(directory), shards, threads=processes))
  return {
    "directory": str(directory),
    "samples": total,
    "subsets": {name: subset.report() for name, subset in found.items()},
    "bad": [entry for subset in found.values() for entry in subset.bad],
  }


def _sources(directory: Path) -> Iterator[tuple[str, Source]]:
  """Every (subset/split, source) of a data set of vidgen's layout, or the one of a plain folder."""
  if not directory.is_dir():
    raise DataError(f"data set {directory}: no such folder")
  found = False
  for place in sorted(p for p in directory.glob("*/*") if p.is_dir()):
    if any(place.glob("*.tar")) or any(place.glob("*.array_record")):
      found = True
      yield (
        f"{place.parent.name}/{place.name}",
        open_source(directory, subset=place.parent.name, split=place.name),
      )
  if not found:
    yield "train", open_source(directory, subset="video", split="train")


def _listed(path: Path) -> set[str]:
  try:
    return {shard["path"] for shard in json.loads(path.read_text())["shards"]}
  except (OSError, ValueError, KeyError, TypeError):
    return set()


def _wrong_digests(directory: Path, shards: list[str], *, threads: int) -> list[BadSample]:
  """The shards whose bytes have another sha256 than their `_stats.json` says, where it does."""
  with ThreadPoolExecutor(threads) as pool:
    return [bad for bad in pool.map(partial(_wrong_digest, directory), shards) if bad]


def _wrong_digest(directory: Path, shard: str) -> BadSample | None:
  path = directory / shard
  stats = stats_path(path)
  if not stats.is_file():
    return None
  try:
    stated = json.loads(stats.read_text()).get("sha256")
  except (ValueError, AttributeError, RecursionError) as error:
    return BadSample(f"{stats.name} is not readable: {error}", shard=shard)
  if stated is None or patiently(partial(file_sha256, path), shard=shard) == stated:
    return None
  return BadSample(f"its sha256 differs from the one in {stats.name}", shard=shard)


class _Subset:
  """Sums over the samples of one subset and split."""

  def __init__(self, source: Source):
    self.source = source
    self.sums = {"samples": len(source), "frames": 0, "seconds": 0.0, "bytes": 0}
    self.digest = hashlib.sha256()
    self.bad = [_entry(problem) for problem in source.problems]
    self._named = {(entry["shard"], entry["key"]) for entry in self.bad}

  def add(self, chunk: list[dict[str, Any]]) -> None:
    for result in chunk:
      if "reason" in result:
        if (result["shard"], result["key"]) not in self._named:
          self.bad.append(result)
        continue
      for name in ("frames", "seconds", "bytes"):
        self.sums[name] += result[name]
      self.digest.update(result["sha256"].encode())

  def report(self) -> dict[str, Any]:
    return {
      **self.sums,
      "bad": len(self.bad),
      "sha256": self.digest.hexdigest(),
      "shards": self.source.describe(),
    }


def _check_chunks(
  sources: Mapping[str, Source], chunks: list[_Chunk], *, limits: Limits, processes: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
  """(name, results) of each chunk, in order."""
  if processes == 1 or len(chunks) <= 2:  # a process takes seconds to start
    _initialize(sources, limits)
    yield from map(_check_chunk, chunks)
    return
  pool = ProcessPoolExecutor(
    min(processes, len(chunks)),
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_initialize,
    initargs=(sources, limits),
  )
  with pool:
    try:
      yield from pool.map(_check_chunk, chunks)
    except BrokenProcessPool as error:
      raise DataError(
        "a process died while decoding; check with one process to see at which sample"
      ) from error


def _initialize(sources: Mapping[str, Source], limits: Limits) -> None:
  global _shared
  _shared = (dict(sources), limits)


def _check_chunk(chunk: _Chunk) -> tuple[str, list[dict[str, Any]]]:
  (name, start), (sources, limits) = chunk, _shared
  source = sources[name]
  indices = range(start, min(start + CHUNK, len(source)))
  return name, [check_sample(source, index, limits=limits) for index in indices]


def check_sample(source: Source, index: int, *, limits: Limits) -> dict[str, Any]:
  """What one sample holds ("frames", "seconds", "bytes", "sha256"), or why it is bad ("reason")."""
  shard, key = source.name(index)
  try:
    sample = source[index]
    shard, key = sample["__shard__"], sample["__key__"]
    return _contents(sample, limits)
  except BadSample as error:
    return {"shard": shard, "key": key, "reason": error.reason}


def _contents(sample: Sample, limits: Limits) -> dict[str, Any]:
  digest, size, frames, seconds, media = hashlib.sha256(), 0, 0, 0.0, 0
  for suffix in sorted(k for k in sample if not k.startswith("__")):
    data = sample[suffix]
    digest.update(f"{suffix} {len(data)} ".encode() + data)
    size += len(data)
    kind = suffix.rsplit(".", 1)[-1]  # "input.mp4" is a video
    try:
      if kind in VIDEO:
        clip = decode_video(data, cover=PREVIEW, limits=limits)
        frames, seconds, media = frames + len(clip.frames), seconds + clip.duration, media + 1
      elif kind in IMAGE:
        decode_image(data, cover=PREVIEW, limits=limits)
        frames, media = frames + 1, media + 1
      elif kind in AUDIO:
        decode_audio(data, limits=limits)
        media += 1
      elif kind in ("txt", "json"):
        _check_text(data, kind)
    except BadSample as error:
      raise BadSample(f".{suffix}: {error.reason}") from error
  if not media:
    raise BadSample("neither video, image nor audio")
  if not sample.get("txt", b"").strip():
    raise BadSample("missing caption")
  return {"frames": frames, "seconds": seconds, "bytes": size, "sha256": digest.hexdigest()}


def _check_text(data: bytes, kind: str) -> None:
  try:
    text = data.decode("utf-8")
    if kind == "json":
      json.loads(text)
  except (ValueError, RecursionError) as error:
    raise BadSample(f"not readable: {type(error).__name__}: {str(error)[:100]}") from error


def _entry(problem: BadSample) -> dict[str, str]:
  return {"shard": problem.shard, "key": problem.key, "reason": problem.reason}

"""The facts of every sample of a data set, measured once, in a file for each of its shards.

  DIR/clip_index/<shard>.clips

A file holds its own SHA-256, a line of JSON and a table, and says of which shard (its digest) and
with which limits it was made. One of another shard, or that is damaged, is made anew. Processes
that need it at the same time begin at different shards, and leave out what others have made.
"""

import dataclasses
import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.config import plain
from vidgen.errors import DataError
from vidgen.inputs.array_cache import ShardPart, shard_parts
from vidgen.inputs.clip_facts import measure_sample
from vidgen.inputs.decode import Limits
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Source
from vidgen.whole_file import write_whole

FOLDER = "clip_index"  # in a data set
SUFFIX = ".clips"
FORMAT = 1
THREADS = 8  # FFmpeg does most of its work outside of Python's lock
ROW = np.dtype([("width", "<i4"), ("height", "<i4"), ("seconds", "<f8"), ("rate", "<f8")])


@dataclasses.dataclass(frozen=True)
class ClipIndex:
  """The facts of the samples of a source: `rows` [n] of `ROW` (`ClipFacts`), zeros for the bad.

  `bad` says of these, by their numbers, why they cannot be read.
  """

  rows: np.ndarray
  bad: Mapping[int, BadSample]


def load_clip_index(
  directory: str | Path,
  source: Source,
  *,
  limits: Limits,
  progress: Callable[[int, int], None] | None = None,
) -> ClipIndex:
  """The facts of all samples of `source`, a part of the data set at `directory`.

  What has not been measured is, and is written where the folder can be written. `progress` is
  called with (samples done, samples in all).

  Raises:
    DataError: the storage fails.
  """
  parts = shard_parts(source)
  told = progress is not None
  found: dict[str, ClipIndex] = {}
  done, total = 0, sum(part.samples for part in parts)
  for part in random.SystemRandom().sample(parts, len(parts)):
    path = Path(directory) / FOLDER / f"{part.name}{SUFFIX}"
    index = _read(path, part, limits)
    if index is None:
      if not told:
        print(f"{path.parent}: measuring samples, as `vidgen data plan` does", file=sys.stderr)
        told = True
      index = _measure(source, part, limits)
      _write(path, index, part, limits)
    found[part.name] = index
    done += part.samples
    if progress is not None:
      progress(done, total)
  bad = {part.start + place: one for part in parts for place, one in found[part.name].bad.items()}
  return ClipIndex(np.concatenate([found[part.name].rows for part in parts]), bad)


def _measure(source: Source, part: ShardPart, limits: Limits) -> ClipIndex:
  rows, bad = np.zeros(part.samples, ROW), {}
  numbers = range(part.start, part.start + part.samples)
  with ThreadPoolExecutor(THREADS) as pool:
    for place, facts in enumerate(pool.map(partial(_facts, source, limits), numbers)):
      if isinstance(facts, BadSample):
        bad[place] = facts
      else:
        rows[place] = facts
  return ClipIndex(rows, bad)


def _facts(source: Source, limits: Limits, number: int) -> tuple[Any, ...] | BadSample:
  shard, key = source.name(number)
  try:
    sample = source[number]
    shard, key = sample["__shard__"], sample["__key__"]
    return dataclasses.astuple(measure_sample(sample, limits=limits))
  except BadSample as error:
    return BadSample(error.reason, shard=shard, key=key)
  except DataError:
    raise  # the storage or the shard, which it names
  except Exception as error:
    raise DataError(f"shard {shard}, key {key!r}: {type(error).__name__}: {error}") from error


def _about(part: ShardPart, limits: Limits) -> dict[str, Any]:
  """What a file must say of itself to be of use."""
  own = {"shard": part.name, "digest": part.digest, "samples": part.samples}
  return {"format": FORMAT, **own, "limits": plain(limits)}


def _write(path: Path, index: ClipIndex, part: ShardPart, limits: Limits) -> None:
  bad = {str(place): [one.shard, one.key, one.reason] for place, one in index.bad.items()}
  text = json.dumps({**_about(part, limits), "bad": bad})  # ASCII: keys of any bytes survive
  body = text.encode() + b"\n" + index.rows.tobytes()
  content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
  except OSError as error:
    reason = error.strerror or error
    print(f"warning: {path}: not kept, to be measured again: {reason}", file=sys.stderr)


def _read(path: Path, part: ShardPart, limits: Limits) -> ClipIndex | None:
  """The facts of a shard; None where there are none, or only of another shard, or damaged ones."""
  try:
    stated, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != stated:
      return None
    text, _, table = body.partition(b"\n")
    about = json.loads(text)
    bad = about.pop("bad")
    if about != _about(part, limits):
      return None
    rows = np.frombuffer(table, ROW)
    found = {
      int(place): BadSample(reason, shard=shard, key=key)
      for place, (shard, key, reason) in bad.items()
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return None
  return ClipIndex(rows, found) if len(rows) == part.samples else None

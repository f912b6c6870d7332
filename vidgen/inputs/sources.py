"""Sources of samples in tar shards and ArrayRecord files, and which source a folder needs."""

import hashlib
import importlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from vidgen.errors import DataError
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import NoSuchSplit, Sample, Source
from vidgen.inputs.storage import ShardFiles, digest_ends, patiently, patiently_apart
from vidgen.inputs.tar_index import TarIndex, load_index
from vidgen.inputs.tfds_source import TfdsSource


class TarSource:
  """Samples straight out of tar shards, in the order of their parquet where there is one.

  A sibling parquet (`00000.parquet`, columns "key" and "status") or `00000_stats.json` says what
  the shard should hold. A sample that the tar has lost keeps its place and is a bad sample, so
  damage to one shard moves no other sample.
  """

  def __init__(self, shards: Sequence[str | os.PathLike[str]], *, root: str | os.PathLike[str]):
    self._root = Path(root)
    self._paths = [Path(shard) for shard in shards]
    with ThreadPoolExecutor(8) as pool:
      self._shards = dict(enumerate(pool.map(_load_shard, self._paths)))
    self._ends = np.cumsum([len(shard.keys) for shard in self._shards.values()])
    self._files = ShardFiles()

  def __getstate__(self):  # a worker process loads the index of a shard when it first reads there
    return {"_root": self._root, "_paths": self._paths, "_ends": self._ends}

  def __setstate__(self, state):
    self.__dict__.update(state, _shards={}, _files=ShardFiles())

  def _shard(self, shard: int) -> "_Shard":
    loaded = self._shards.get(shard)
    if loaded is None:
      loaded = self._shards[shard] = _load_shard(self._paths[shard])
    return loaded

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __repr__(self) -> str:
    return f"TarSource(shards={len(self._paths)}, samples={len(self)})"

  def _locate(self, index: int) -> tuple[int, str, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    shard = int(np.searchsorted(self._ends, index, side="right"))
    place = index - int(self._ends[shard - 1] if shard else 0)
    loaded = self._shard(shard)
    return shard, loaded.keys[place], int(loaded.rows[place])

  def name(self, index: int) -> tuple[str, str]:
    """Shard, relative to the data set, and key."""
    shard, key, _ = self._locate(index)
    return _relative(self._paths[shard], self._root), key

  def __getitem__(self, index: int) -> Sample:
    return self._sample(index, only=())

  def text(self, index: int) -> Sample:
    """As the sample itself, but of its members the caption and the json alone are read."""
    return self._sample(index, only=("txt", "json"))

  def _sample(self, index: int, *, only: Sequence[str]) -> Sample:
    shard, key, row = self._locate(index)
    name = _relative(self._paths[shard], self._root)
    if row < 0:
      raise BadSample("the shard has lost this sample", shard=name, key=key)
    sample: Sample = {"__shard__": name, "__key__": key}
    for suffix, (offset, size) in self._shard(shard).index.members(row).items():
      if only and suffix not in only:
        continue
      read = partial(self._files.read, self._paths[shard], offset, size)
      data = patiently(read, shard=name, key=key)
      if len(data) != size:
        raise BadSample(f"{len(data)} of {size} bytes of .{suffix}", shard=name, key=key)
      sample[suffix] = data
    return sample

  @property
  def shards(self) -> list[str]:
    """The shards, relative to the data set."""
    return [_relative(path, self._root) for path in self._paths]

  @property
  def problems(self) -> list[BadSample]:
    """Damage that the headers and the sibling files show."""
    return [
      BadSample(reason, shard=_relative(path, self._root), key=key)
      for number, path in enumerate(self._paths)
      for key, reason in self._shard(number).problems
    ]

  def describe(self) -> list[dict[str, Any]]:
    """One dict a shard."""
    return [
      {
        "shard": _relative(path, self._root),
        "size": path.stat().st_size,
        "samples": len(self._shard(number).keys),
        "digest": self._shard(number).index.digest,
      }
      for number, path in enumerate(self._paths)
    ]


class _Shard:
  """The index of a tar, its samples' `keys` in order, and their `rows` in the index (-1: lost)."""

  def __init__(self, index: TarIndex, expected: Sequence[str] | int | None):
    self.index = index
    self.keys: Sequence[str] = index.keys
    self.rows = np.arange(len(index))
    self.problems = [("", problem) for problem in index.problems]
    if isinstance(expected, int) and expected < len(index):
      self.problems.append(("", f"{len(index)} samples, {expected} by its _stats.json"))
    elif isinstance(expected, int):
      lost = expected - len(index)
      self.keys = (*index.keys, *(f"(lost {i})" for i in range(lost)))
      self.rows = np.pad(self.rows, (0, lost), constant_values=-1)
    elif expected is not None:
      row = {key: i for i, key in enumerate(index.keys)}
      self.keys = expected
      self.rows = np.asarray([row.pop(key, -1) for key in expected], np.int64)
      self.problems += [(key, "not in the shard's parquet") for key in row]
    gone = np.flatnonzero(self.rows < 0)
    self.problems += [(self.keys[int(i)], "the shard has lost this sample") for i in gone]


def _load_shard(path: Path) -> _Shard:
  return _Shard(load_index(path), _expected(path))


def _expected(path: Path) -> Sequence[str] | int | None:
  """The keys by the sibling parquet, or the count by the sibling _stats.json, or None."""
  parquet, stats = path.with_suffix(".parquet"), path.with_name(f"{path.stem}_stats.json")
  if parquet.is_file():
    import pyarrow
    import pyarrow.parquet

    try:
      columns = pyarrow.parquet.read_schema(parquet).names
      wanted = [name for name in ("key", "status") if name in columns]
      if "key" in wanted:
        table = pyarrow.parquet.read_table(parquet, columns=wanted).to_pydict()
        status = table.get("status") or ["success"] * len(table["key"])
        keys = [str(k) for k, s in zip(table["key"], status, strict=True) if s == "success"]
        return list(dict.fromkeys(keys))
    except (OSError, pyarrow.ArrowException) as error:
      raise DataError(f"{parquet}: not readable as parquet: {error}") from error
  if stats.is_file():
    try:
      count = json.loads(stats.read_text())["successes"]
      return count if isinstance(count, int) and count >= 0 else None
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise DataError(f"{stats}: no count of successes: {error!r}") from error
  return None


class ArrayRecordSource:
  """Samples out of ArrayRecord: msgpack maps with "__key__", suffix -> bytes, and "sha256"."""

  def __init__(self, shards: Sequence[str | os.PathLike[str]], *, root: str | os.PathLike[str]):
    self._root = Path(root)
    self._paths = [Path(shard) for shard in shards]
    self._local = threading.local()
    counts = []
    for path in self._paths:
      try:
        count = partial(_count_records, path)
        counts.append(patiently_apart(count, files=[path], shard=os.fspath(path)))
      except BadSample as bad:
        raise DataError(f"shard {path}: not readable as ArrayRecord: {bad.reason}") from bad
    self._ends = np.cumsum(counts)

  def __getstate__(self):
    return {"root": self._root, "paths": self._paths}

  def __setstate__(self, state):
    self.__init__(state["paths"], root=state["root"])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __repr__(self) -> str:
    return f"ArrayRecordSource(shards={len(self._paths)}, samples={len(self)})"

  def _locate(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    shard = int(np.searchsorted(self._ends, index, side="right"))
    return shard, index - int(self._ends[shard - 1] if shard else 0)

  def name(self, index: int) -> tuple[str, str]:
    """Shard, relative to the data set, and the record's number (its key is inside)."""
    shard, row = self._locate(index)
    return _relative(self._paths[shard], self._root), f"#{row}"

  def __getitem__(self, index: int) -> Sample:
    shard, row = self._locate(index)
    name = _relative(self._paths[shard], self._root)
    read = partial(self._read, shard, row)
    data = patiently_apart(read, files=[self._paths[shard]], shard=name, key=f"#{row}")
    return _unpack_record(data, shard=name, key=f"#{row}")

  def _read(self, shard: int, row: int) -> bytes:
    readers = self._local.__dict__.setdefault("readers", {})  # a reader is not for two threads
    if shard not in readers:
      readers[shard] = _record_reader(self._paths[shard])
    try:
      return readers[shard].read([row])[0]
    except Exception:
      del readers[shard]  # one that has failed may go on failing
      raise

  @property
  def shards(self) -> list[str]:
    """The shards, relative to the data set."""
    return [_relative(path, self._root) for path in self._paths]

  @property
  def problems(self) -> list[BadSample]:
    """Shards with another count than their siblings say; hashes are checked on reading."""
    found = []
    for path, count in zip(self._paths, np.diff(self._ends, prepend=0).tolist(), strict=True):
      expected = _expected(path)
      if expected is not None and not isinstance(expected, int):
        expected = len(expected)
      if expected not in (None, count):
        reason = f"{count} records, {expected} by its siblings"
        found.append(BadSample(reason, shard=_relative(path, self._root)))
    return found

  def describe(self) -> list[dict[str, Any]]:
    """One dict a shard; the digest covers the size and both ends, where the chunk index lies."""
    starts = [0, *self._ends[:-1].tolist()]
    return [
      {
        "shard": _relative(path, self._root),
        "size": path.stat().st_size,
        "samples": int(end - start),
        "digest": digest_ends(path),
      }
      for path, start, end in zip(self._paths, starts, self._ends, strict=True)
    ]


def _record_reader(path: Path) -> Any:
  module = importlib.import_module("array_record.python.array_record_module")
  return module.ArrayRecordReader(os.fspath(path))


def _count_records(path: Path) -> int:
  reader = _record_reader(path)
  count = reader.num_records()
  reader.close()  # raises what went wrong in opening, where the count is 0
  return count


def _unpack_record(data: bytes, *, shard: str, key: str) -> Sample:
  try:
    record = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
  except (ValueError, msgpack.UnpackException) as error:
    raise BadSample(f"not a msgpack map: {error}", shard=shard, key=key) from error
  if not isinstance(record, dict) or not isinstance(record.get("__key__"), str):
    raise BadSample("the record has no __key__", shard=shard, key=key)
  key = record.pop("__key__")
  stated = record.pop("sha256", None)
  if not isinstance(stated, dict):
    raise BadSample("the record has no sha256", shard=shard, key=key)
  sample: Sample = {"__shard__": shard, "__key__": key}
  for suffix, value in record.items():
    if not isinstance(value, bytes):
      raise BadSample(f".{suffix} is not bytes", shard=shard, key=key)
    if hashlib.sha256(value).hexdigest() != stated.get(suffix):
      raise BadSample(f"the sha256 of .{suffix} differs from the record's", shard=shard, key=key)
    sample[suffix.lower()] = value
  return sample


def _relative(path: Path, root: Path) -> str:
  return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def text_reader(source: Source) -> Callable[[int], Sample]:
  """What reads a sample's caption and json; its media are left unread where they can be."""
  return source.text if isinstance(source, TarSource) else source.__getitem__


def open_source(directory: str | os.PathLike[str], *, subset: str, split: str = "train") -> Source:
  """The samples that lie in `directory`: a data set of vidgen's layout, or a folder of tars.

  Looked for, in this order: DIR/<subset>/<split>/ and, as other tools leave them, DIR/<split>/ and
  DIR itself, with *.tar or *.array_record in it; a prepared TFDS data set in DIR/<subset> or DIR.

  Raises:
    DataError: nothing of the kind lies there, or a shard cannot be read.
  """
  root = Path(directory)
  if not root.is_dir():
    raise DataError(f"data set {root}: no such folder")
  contract = (root / "dataset.json").is_file()
  places = [root / subset / split]
  if not contract:
    places += [root / split, root] if split == "train" else [root / split]
  for place in places:
    tars = sorted(place.glob("*.tar"))
    records = sorted(place.glob("*.array_record"))
    if tars and records:
      raise DataError(f"{place}: both *.tar and *.array_record; keep one kind")
    if tars:
      return _not_empty(TarSource(tars, root=root), place)
    if records:
      return _not_empty(ArrayRecordSource(records, root=root), place)
  for place in (root / subset, root):
    if (place / "dataset_info.json").is_file() and (place / "features.json").is_file():
      return _not_empty(TfdsSource(place, split=split), place)
  looked = ", ".join(str(p.relative_to(root)) if p != root else "." for p in places)
  raise NoSuchSplit(f"data set {root}: no *.tar or *.array_record for {subset}/{split} in {looked}")


def _not_empty(source: Source, place: Path) -> Source:
  if not len(source):
    first = f": {source.problems[0]}" if source.problems else ""
    raise DataError(f"{place}: the shards hold no sample{first}")
  return source

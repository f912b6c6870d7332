"""Writes shards: tars as img2dataset and video2dataset leave them, and ArrayRecord files.

A tar shard `00000.tar` holds for each sample the members `KEY.SUFFIX`, in the order of their
suffixes: the media, `KEY.txt` (the caption) and `KEY.json` (the metadata, indented by 4). Beside it
lie `00000.parquet`, a row for each sample with the metadata as columns (lists and dicts as JSON
text), and `00000_stats.json`. A sample whose status is not "success" has a row only, so that the
number of successes in the parquet is what the tar must hold. A key is the number of its shard, five
digits, and its number within the shard. Headers of a tar hold no time, owner or machine: the same
samples give the same bytes.

An ArrayRecord shard `00000.array_record` has a record for each successful sample: a msgpack map
with `__key__`, the same suffixes as bytes, and `sha256`, a map from suffix to hex digest. Every
record can be read by itself (group size 1). Parquet and stats lie beside it too.
"""

import dataclasses
import hashlib
import io
import json
import math
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq

from vidgen.whole_file import whole_file, write_whole

KEY = re.compile(r"[A-Za-z0-9_-]+")  # no dot, no slash: everything up to the first dot is the key
FORMATS = {"tar": ".tar", "array_record": ".array_record"}
FAILURES = ("failed_to_download", "failed_to_resize", "failed_to_subsample")  # the last of videos


@dataclasses.dataclass(frozen=True)
class Record:
  """One sample on its way into a shard.

  `files`: suffix -> bytes; `caption` becomes `.txt`. In the metadata, `columns` (what was known
  before: url, caption, ...) come first, then key, status and error message, then `measured` (what
  was found out: width, video metadata, ...). All records of a shard have the same names there.
  """

  key: str
  files: Mapping[str, bytes]
  caption: str
  columns: Mapping[str, Any]
  measured: Mapping[str, Any]
  status: str = "success"
  error_message: str | None = None

  def __post_init__(self):
    if not KEY.fullmatch(self.key):
      raise ValueError(f"key {self.key!r}: only letters, digits, '-' and '_'")
    if self.status not in ("success", *FAILURES):
      raise ValueError(f"key {self.key}: unknown status {self.status!r}")

  def metadata(self) -> dict[str, Any]:
    """The content of `.json`, and the row of the parquet."""
    outcome = {"key": self.key, "status": self.status, "error_message": self.error_message}
    return {**self.columns, **outcome, **self.measured}

  def members(self) -> dict[str, bytes]:
    """All members, in the order of their suffixes."""
    members = {
      **self.files,
      "txt": self.caption.encode(),
      "json": json.dumps(self.metadata(), indent=4).encode(),
    }
    return dict(sorted(members.items()))


def sample_key(shard: int, index: int, *, shard_size: int) -> str:
  """The key of sample `index` of a shard that holds up to `shard_size`."""
  digits = max(1, math.ceil(math.log10(shard_size)))
  return f"{shard:05d}{index:0{digits}d}"


def write_shard(
  folder: str | Path, records: Iterable[Record], *, shard: int, storage: str = "tar"
) -> dict[str, Any]:
  """Writes one shard and its siblings; each file appears whole or not at all, the stats last.

  Returns:
    The stats: counts by outcome, times, and "bytes" and "sha256" of the shard.

  Raises:
    ValueError: an unknown storage, no records, or records that cannot be in one shard.
  """
  if storage not in FORMATS:
    raise ValueError(f"storage {storage!r} is none of {', '.join(FORMATS)}")
  folder, start = Path(folder), time.time()
  folder.mkdir(parents=True, exist_ok=True)
  path = shard_path(folder, shard, storage=storage)
  rows: list[dict[str, Any]] = []
  with whole_file(path) as temporary:
    successes = _keep_rows(records, rows)
    (_write_tar if storage == "tar" else _write_array_record)(temporary, successes)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
  with whole_file(path.with_suffix(".parquet")) as temporary:
    pq.write_table(_table(rows), temporary)
  statuses = [row["status"] for row in rows]
  late = "failed_to_subsample" if "video_metadata" in rows[0] else "failed_to_resize"
  end = time.time()
  stats = {
    "count": len(rows),
    "successes": statuses.count("success"),
    **{name: statuses.count(name) for name in ("failed_to_download", late)},
    "duration": end - start,
    "start_time": start,
    "end_time": end,
    "status_dict": {
      message: sum((r["error_message"] or r["status"]) == message for r in rows)
      for message in sorted({r["error_message"] or r["status"] for r in rows})
    },
    "bytes": path.stat().st_size,
    "sha256": digest,
  }
  write_whole(stats_path(path), json.dumps(stats, indent=4).encode())
  return stats


def shard_path(folder: str | Path, shard: int, *, storage: str) -> Path:
  """Where shard number `shard` lies."""
  return Path(folder, f"{shard:05d}{FORMATS[storage]}")


def stats_path(shard: Path) -> Path:
  """Where the stats of a shard lie."""
  return shard.with_name(f"{shard.stem}_stats.json")


def _keep_rows(records: Iterable[Record], rows: list[dict[str, Any]]) -> Iterator[Record]:
  """Passes on the successes and notes the metadata of all."""
  seen = set()
  for record in records:
    row = record.metadata()
    if record.key in seen:
      raise ValueError(f"key {record.key} occurs twice in a shard")
    if rows and list(row) != list(rows[0]):
      raise ValueError(f"key {record.key}: its metadata has other names than the shard's first")
    seen.add(record.key)
    rows.append(row)
    if record.status == "success":
      yield record
  if not rows:
    raise ValueError("a shard needs at least one record")


def _write_tar(path: Path, records: Iterable[Record]) -> None:
  with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
    for record in records:
      for suffix, data in record.members().items():
        member = tarfile.TarInfo(f"{record.key}.{suffix}")  # time 0, no owner
        member.size, member.mode = len(data), 0o444
        tar.addfile(member, io.BytesIO(data))


def _write_array_record(path: Path, records: Iterable[Record]) -> None:
  from array_record.python import array_record_module as module  # pyright: ignore  (no stubs)

  writer = module.ArrayRecordWriter(str(path), "group_size:1")
  try:
    for record in records:
      members = record.members()
      digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in members.items()}
      writer.write(msgpack.packb({"__key__": record.key, **members, "sha256": digests}))
  finally:
    writer.close()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
  """Rows as columns; a column that is all None is text, as it is in the other shards."""
  columns = {}
  for name in rows[0]:
    values = [row[name] for row in rows]
    nested = any(isinstance(v, list | dict) for v in values)
    columns[name] = pa.array([json.dumps(v) for v in values] if nested else values)
    if pa.types.is_null(columns[name].type):
      columns[name] = columns[name].cast(pa.string())
  return pa.table(columns)

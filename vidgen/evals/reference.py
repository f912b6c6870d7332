"""What was computed of a reference, kept in files: arrays without pickle, found again by digest.

A file holds entries. Each has a key, all that its arrays follow from: the extractor and its digest,
its preprocessing, the rule by which clips were cut, and the digest of the data. An entry of another
key is never used. The SHA-256 of keys and arrays is in the file, so damage is found.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.evals.blocks import gathered_json
from vidgen.whole_file import write_whole

VERSION = 1
MAX_BYTES = 8 << 30
DATA = "data"  # the part of a key that names the data


@dataclasses.dataclass(frozen=True)
class Entry:
  """What was computed under a key: arrays by name, and facts as plain JSON."""

  key: Mapping[str, Any]
  facts: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


def write_entries(path: Path, entries: Mapping[str, Entry]) -> None:
  """Writes a file of entries, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {f"{n}/{a}": x for n, entry in entries.items() for a, x in entry.arrays.items()}
  about = {n: {"key": cfg.plain(e.key), "facts": cfg.plain(e.facts)} for n, e in entries.items()}
  head = {"version": VERSION, "entries": about, "sha256": _digest(about, arrays)}
  file = io.BytesIO()
  stored: dict[str, Any] = {
    **arrays,
    "head": np.frombuffer(cfg.canonical_json(head).encode(), "u1"),
  }
  np.savez(file, allow_pickle=False, **stored)
  write_whole(path, file.getvalue())


def _digest(about: Any, arrays: Mapping[str, np.ndarray]) -> str:
  total = hashlib.sha256(cfg.canonical_json(about).encode())
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    total.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
    total.update(array.data if array.size else b"")
  return total.hexdigest()


def read_entries(path: Path) -> dict[str, Entry]:
  """The entries of a file.

  Raises:
    DataError: it is no such file, or damaged; it is named.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      sizes = [i.file_size for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED]
      if len(sizes) < len(archive.infolist()) or sum(sizes) > MAX_BYTES:
        raise DataError(
          f"{path}: holds no reference statistics: compressed, or larger than {MAX_BYTES} bytes"
        )
    with np.load(path, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
    head = json.loads(arrays.pop("head").tobytes())
    if head["version"] != VERSION or head["sha256"] != _digest(head["entries"], arrays):
      raise DataError(f"{path}: damaged, or of another version; remove it to have it made again")
    entries = {}
    for name, about in head["entries"].items():
      own = {a.removeprefix(f"{name}/"): x for a, x in arrays.items() if a.startswith(f"{name}/")}
      entries[name] = Entry(about["key"], about["facts"], own)
    return entries
  except DataError:
    raise
  except Exception as error:  # zip and array headers of any kind of damage
    raise DataError(f"{path}: holds no reference statistics: {type(error).__name__}") from error


def kept(
  name: str,
  *,
  key: Mapping[str, Any],
  make: Callable[[], Entry] | None,
  stats: Path | None,
  cache: Path | None,
) -> Entry:
  """The entry of a key: from the file `stats` or the folder `cache`, else made and kept there.

  Without `make` there is no reference at hand: the file must have the entry, whatever its data.
  The first of several processes writes; all of them must see the same files.

  Raises:
    ConfigError: neither an entry nor a reference is there, or the entry of `stats` has another key;
      what differs is named.
    DataError: a file is damaged.
  """
  if stats is not None and _for_all(stats):
    entries = read_entries(stats)
    if name in entries:
      wanted = {k: v for k, v in key.items() if k != DATA or make is not None}
      have = {k: v for k, v in entries[name].key.items() if k in wanted or k != DATA}
      if lines := cfg.differences(have, wanted):
        raise ConfigError(f"--stats {stats}: {name} is of another protocol: {'; '.join(lines)}")
      return entries[name]
  if make is None:
    where = f"--stats {stats} has no {name}" if stats else "no --stats either"
    raise ConfigError(f"no --reference, and {where}")
  first = jax.process_index() == 0
  place = cache / f"{name}-{cfg.digest(key)[:32]}.npz" if cache is not None else None
  if place is not None and _for_all(place):
    entry = read_entries(place)[name]
    if cfg.differences(entry.key, key):
      raise DataError(f"{place}: holds what its name does not say; remove it")
  else:
    entry = make()
    if place is not None and first:
      write_entries(place, {name: entry})
  if stats is not None and first:
    others = read_entries(stats) if stats.is_file() else {}
    write_entries(stats, {**others, name: entry})
  return entry


def _for_all(path: Path) -> bool:
  """Whether a file is there, for every process.

  Raises:
    ConfigError: it is for some only, which would wait for the others for ever.
  """
  there = gathered_json(path.is_file())
  if len(set(there)) > 1:
    raise ConfigError(f"{path}: not there for every process; it must be on storage that all share")
  return there[0]

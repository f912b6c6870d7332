"""Shards as files, on storage that now and then fails and recovers.

A passing error must not turn a sample into a bad one: the run would take another in its place, and
differ from a run that met no error. So reading is tried again for some seconds, and what still
fails then stops the run. Only bytes that were read and are wrong make a bad sample.
"""

import contextlib
import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from vidgen.errors import DataError
from vidgen.inputs.quarantine import BadSample

T = TypeVar("T")

DELAYS = (0.1, 0.4, 1.0, 2.5)  # seconds, one before each further try
CHUNK = 1 << 23  # bytes of a file that are read at a time
DIGEST_END = 1 << 20  # bytes of each end of a file that enter its digest


def patiently(read: Callable[[], T], *, shard: str, key: str = "") -> T:
  """What `read` returns; after an OSError it is called again, `DELAYS` later.

  A file that is not there is not waited for.

  Raises:
    DataError: every try failed; shard and key are named.
  """
  for delay in DELAYS:
    try:
      return read()
    except FileNotFoundError:
      break
    except OSError:
      time.sleep(delay)
  try:
    return read()
  except OSError as error:
    place = f"shard {shard}, key {key!r}" if key else f"shard {shard}"
    reason = error.strerror or error
    raise DataError(f"{place}: reading failed: {reason}; mend the storage, start again") from error


def patiently_apart(
  read: Callable[[], T], *, files: Iterable[Path], shard: str, key: str = ""
) -> T:
  """As `patiently`, for a reader that raises the same errors for damage as for failing storage.

  Where `read` fails twice, all of `files` is read plainly: if that fails too, it is the storage;
  if it works and `read` fails once more, it is damage. `read` opens anew after a failure.

  Raises:
    DataError: the storage failed every time; shard and key are named.
    BadSample: the files are readable, but damaged.
  """
  files = list(files)

  def attempt() -> T:
    for _ in range(2):
      with contextlib.suppress(Exception):
        return read()
    for file in files:
      _read_through(file)
    try:
      return read()
    except DataError:
      raise
    except Exception as error:
      raise BadSample(f"reading failed: {error}", shard=shard, key=key) from error

  return patiently(attempt, shard=shard, key=key)


def _read_through(path: Path) -> None:
  with open(path, "rb", buffering=0) as file:
    while file.read(CHUNK):
      pass


class ShardFiles:
  """Descriptors of shards, opened when first read, and anew after an error; one set a process."""

  def __init__(self, limit: int = 256):
    self._limit = limit  # descriptors that are kept open
    self._open: dict[Path, _Descriptor] = {}

  def __getstate__(self):  # another process opens the files itself
    return {"_limit": self._limit, "_open": {}}

  def read(self, path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; fewer where the file ends before.

    Raises:
      OSError: as the system says; a further call opens the file anew.
    """
    file = self._open.get(path) or _Descriptor(path)
    try:
      data = file.read(offset, size)
    except OSError:
      self._open.pop(path, None)  # a stale NFS handle stays stale
      raise
    if len(self._open) < self._limit:
      self._open.setdefault(path, file)
    return data


class _Descriptor:
  """An open file, closed when the last thread has let go of it: its number may be given away."""

  def __init__(self, path: Path):
    self._number = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._number)

  def read(self, offset: int, size: int) -> bytes:
    parts = []
    while size and (part := os.pread(self._number, size, offset)):  # may give less than is there
      parts.append(part)
      offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def digest_ends(path: Path) -> str:
  """SHA-256, in hex, of the size and both ends of a file, where formats keep their tables."""
  digest = hashlib.sha256(str(path.stat().st_size).encode())
  with open(path, "rb") as file:
    digest.update(file.read(DIGEST_END))
    file.seek(max(0, path.stat().st_size - DIGEST_END))
    digest.update(file.read())
  return digest.hexdigest()


def file_sha256(path: Path) -> str:
  """SHA-256, in hex, of all of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

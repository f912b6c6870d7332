"""Random access into tar shards: where every member lies, read once from the headers.

A tar has no table of contents and no count, so damage is easily overlooked: a reader that meets a
bad header or the end of a cut file takes it for the end. Here each header's checksum, each member's
extent and the two zero blocks at the end are checked, and whatever is wrong is listed. The index is
kept beside the shard as `.npz` without pickle. Member names are keys, never paths.
"""

import dataclasses
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from vidgen.inputs.storage import patiently
from vidgen.whole_file import whole_file

FORMAT = 1
BLOCK = 512
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)  # WebDataset: key, then suffixes
MAX_NAME = 4096  # bytes of a member's name; a longer one is listed and skipped
MAX_EXTENDED = 1 << 20  # bytes of a pax or GNU long-name header
HASHED_WHOLE = 1 << 20  # payloads up to this enter the digest whole, larger ones by their two ends
HASHED_END = 1 << 16
PARSING = threading.Lock()  # Python 3.11 may fail where two threads parse a header of NumPy


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """Samples of one shard, `keys` [n], in file order, and their members, [m], sample by sample.

  Sample i has the members `starts[i]:starts[i + 1]`: `suffix` indexes `suffixes`; `offset` and
  `size` are bytes of the shard. `digest` covers all headers and payloads (of those above 1 MiB the
  first and last 64 KiB). `problems` is empty for a sound shard.
  """

  keys: tuple[str, ...]
  suffixes: tuple[str, ...]
  starts: np.ndarray
  suffix: np.ndarray
  offset: np.ndarray
  size: np.ndarray
  digest: str
  problems: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.keys)

  def members(self, sample: int) -> dict[str, tuple[int, int]]:
    """Suffix -> (offset, size) of the `sample`-th sample."""
    rows = range(int(self.starts[sample]), int(self.starts[sample + 1]))
    return {self.suffixes[self.suffix[r]]: (int(self.offset[r]), int(self.size[r])) for r in rows}


@dataclasses.dataclass(frozen=True)
class _Member:
  name: str
  offset: int
  size: int
  regular: bool


class _Scan:
  """One pass over the headers of an open shard; fills `digest` and `problems` as it goes."""

  def __init__(self, file, size: int):
    self.file = file
    self.size = size
    self.digest = hashlib.sha256()
    self.problems: list[str] = []

  def members(self) -> Iterator[_Member]:
    position, lost, extended = 0, False, {}
    while True:
      header = self._read(position, BLOCK)
      if len(header) < BLOCK:
        where = "inside a header" if header else "without the end-of-archive blocks"
        self.problems.append(f"the file ends at byte {position + len(header)} {where}")
        return
      if not any(header):
        after = self._next_data(position)
        if after is None:
          if position + 2 * BLOCK > self.size:
            self.problems.append(
              f"the file ends at byte {self.size} after one end-of-archive block"
            )
          return
        self.problems.append(f"zero blocks at byte {position}, yet data at byte {after}")
        position, lost, extended = after // BLOCK * BLOCK, True, {}
        continue
      size = _checked_size(header)
      if size is None:  # look for the next good header, so that one bad one loses one member
        if not lost:
          self.problems.append(f"bad header at byte {position}")
        lost, extended = True, {}
        position += BLOCK
        continue
      lost = False
      self.digest.update(header)
      kind, start = header[156:157], position + BLOCK
      if kind in (b"x", b"g", b"L", b"K"):
        if size > MAX_EXTENDED or start + size > self.size:
          self.problems.append(f"an extended header of {size} bytes at byte {position}")
          extended = {}
          position = start
          lost = True
          continue
        data = self._read(start, size)
        self.digest.update(data)
        if kind == b"x":
          extended |= _pax(data)
        elif kind == b"L":
          extended["path"] = data.rstrip(b"\0")
        position = start + _padded(size)
        continue
      size = _number_or(extended.get("size"), size)
      name = extended.get("path") or _name(header)
      extended = {}
      if size is None or start + size > self.size:
        shown = name.decode("utf-8", "replace")[:80]
        self.problems.append(f"member {shown!r} at byte {position} is cut short by the file's end")
        return
      self._hash_payload(start, size)
      position = start + _padded(size)
      if len(name) > MAX_NAME:
        self.problems.append(f"a name of {len(name)} bytes at byte {start - BLOCK}")
        continue
      regular = kind in (b"0", b"\0", b"7")
      yield _Member(name.decode("utf-8", "surrogateescape"), start, size, regular)

  def _read(self, offset: int, size: int) -> bytes:
    return os.pread(self.file.fileno(), size, offset)

  def _next_data(self, position: int) -> int | None:
    """Where the next byte that is not zero lies, at or after `position`."""
    while chunk := self._read(position, 1 << 20):
      rest = chunk.lstrip(b"\0")
      if rest:
        return position + len(chunk) - len(rest)
      position += len(chunk)
    return None

  def _hash_payload(self, start: int, size: int) -> None:
    if size <= HASHED_WHOLE:
      self.digest.update(self._read(start, size))
    else:
      self.digest.update(self._read(start, HASHED_END))
      self.digest.update(self._read(start + size - HASHED_END, HASHED_END))


def _padded(size: int) -> int:
  return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int | None:
  if field[0] & 0x80:  # base 256, for sizes above 8 GiB
    value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return value if field[0] == 0x80 else None
  text = field.strip(b" \0")
  return int(text or b"0", 8) if all(c in b"01234567" for c in text) else None


def _number_or(text: bytes | None, otherwise: int) -> int | None:
  if text is None:
    return otherwise
  return int(text) if text.isdigit() and len(text) < 20 else None


def _checked_size(header: bytes) -> int | None:
  """The size a header declares, or None where its checksum is wrong."""
  stated = _number(header[148:156])
  unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
  if stated != unsigned:
    signed = unsigned - 256 * sum(c > 127 for c in header[:148] + header[156:])
    if stated != signed:  # old tars summed signed characters
      return None
  kind = header[156:157]
  if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
    return 0  # links, devices and folders have no data, whatever their header says
  return _number(header[124:136])


def _name(header: bytes) -> bytes:
  name = header[:100].split(b"\0", 1)[0]
  prefix = header[345:500].split(b"\0", 1)[0]
  return prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name


def _pax(data: bytes) -> dict[str, bytes]:
  found = {}
  while data:
    length, space, _ = data.partition(b" ")
    if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
      break
    key, equals, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
    if equals and key in (b"path", b"size"):
      found[key.decode()] = value
    data = data[int(length) :]
  return found


def build_index(path: str | os.PathLike[str]) -> TarIndex:
  """Reads every header of the shard at `path`.

  Members are grouped by key as in WebDataset, wherever in the shard they lie; the suffix is
  lower-cased; names whose last part begins with "__" and members that are no regular files are
  skipped; of two members with the same key and suffix the first counts and the second is listed.

  Raises:
    DataError: the shard cannot be read at all.
  """
  samples, scan = patiently(partial(_scan, path), shard=os.fspath(path))
  suffixes = tuple(sorted({suffix for parts in samples.values() for suffix in parts}))
  column = {suffix: i for i, suffix in enumerate(suffixes)}
  rows = [(column[s], *place) for parts in samples.values() for s, place in parts.items()]
  suffix, offset, size = np.asarray(rows, np.int64).reshape(-1, 3).T
  return TarIndex(
    keys=tuple(samples),
    suffixes=suffixes,
    starts=np.cumsum([0, *map(len, samples.values())]),
    suffix=suffix,
    offset=offset,
    size=size,
    digest=scan.digest.hexdigest(),
    problems=tuple(scan.problems),
  )


def _scan(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, tuple[int, int]]], _Scan]:
  """Key -> suffix -> (offset, size), and the finished scan.

  Raises:
    OSError: the storage fails.
  """
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  with open(path, "rb") as file:
    scan = _Scan(file, os.fstat(file.fileno()).st_size)
    for member in scan.members():
      match = NAME.match(member.name)
      if not member.regular or not match or member.name.rsplit("/", 1)[-1].startswith("__"):
        continue
      key, suffix = match.group(1), match.group(2).lower()
      parts = samples.setdefault(key, {})
      if suffix in parts:
        scan.problems.append(f"key {key[:80]!r} has two members .{suffix[:20]}")
      else:
        parts[suffix] = (member.offset, member.size)
  return samples, scan


def load_index(path: str | os.PathLike[str]) -> TarIndex:
  """The index of the shard at `path`: from its cache while the shard has not changed, else built.

  The cache lies beside the shard, or, where that folder cannot be written, in the user's cache
  folder. It holds the shard's size and modification time and is of no use once these differ.

  Raises:
    DataError: the shard cannot be read at all.
  """
  path = Path(path)
  stat = patiently(path.stat, shard=os.fspath(path))
  stamp = (stat.st_size, stat.st_mtime_ns)
  places = _cache_places(path)
  for place in places:
    index = _read_cache(place, stamp)
    if index is not None:
      return index
  index = build_index(path)
  for place in places:
    try:
      _write_cache(place, index, stamp)
      break
    except OSError:
      continue  # a read-only folder; without any cache the index is built at each start
  return index


def _cache_places(path: Path) -> list[Path]:
  home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
  return [path.with_name(path.name + ".index.npz"), home / "vidgen" / "index" / f"{name}.npz"]


def _write_cache(place: Path, index: TarIndex, stamp: tuple[int, int]) -> None:
  place.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(place) as temporary, open(temporary, "wb") as file:
    np.savez(
      file,
      format=np.int64(FORMAT),
      stamp=np.asarray(stamp, np.int64),
      keys=_pack(index.keys),
      suffixes=_pack(index.suffixes),
      members=np.stack([index.suffix, index.offset, index.size]),
      starts=index.starts,
      digest=_pack([index.digest]),
      problems=_pack(index.problems),
    )


def _read_cache(place: Path, stamp: tuple[int, int]) -> TarIndex | None:
  """The cached index, or None where there is none, it is of another shard, or it is damaged."""
  try:
    with zipfile.ZipFile(place) as archive:  # nothing in it may grow when it is read
      if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
        return None
    with PARSING, np.load(place, allow_pickle=False) as file:
      if int(file["format"]) != FORMAT or tuple(file["stamp"].tolist()) != stamp:
        return None
      keys, suffixes = _unpack(file["keys"]), _unpack(file["suffixes"])
      starts, members = file["starts"], file["members"]
      digest, problems = _unpack(file["digest"])[0], _unpack(file["problems"])
  except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError):
    return None
  except (RuntimeError, MemoryError, zipfile.BadZipFile):  # zipfile: flags of encryption, sizes
    return None
  if starts.dtype != np.int64 or starts.shape != (len(keys) + 1,):
    return None
  if members.dtype != np.int64 or members.shape != (3, starts[-1]) or np.any(members < 0):
    return None
  suffix, offset, size = members
  if starts[0] or np.any(np.diff(starts) < 0) or np.any(suffix >= len(suffixes)):
    return None
  if np.any(offset > stamp[0]) or np.any(size > stamp[0] - offset):
    return None
  return TarIndex(keys, suffixes, starts, suffix, offset, size, digest, problems)


def _pack(texts) -> np.ndarray:
  """Texts as one uint8 array, each ended by a zero byte (no tar name holds one)."""
  data = b"".join(t.encode("utf-8", "surrogateescape") + b"\0" for t in texts)
  return np.frombuffer(data, np.uint8)


def _unpack(array: np.ndarray) -> tuple[str, ...]:
  parts = array.astype(np.uint8).tobytes().split(b"\0")[:-1]
  return tuple(part.decode("utf-8", "surrogateescape") for part in parts)

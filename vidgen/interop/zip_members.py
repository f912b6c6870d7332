"""Where the members of a zip file lie, for members that are stored as they are.

Only positions are read, none of the contents; what is read is bounded whatever the file says.
PyTorch's archives are such files, and their arrays can then be memory-mapped.
"""

import dataclasses
import struct
from pathlib import Path
from typing import BinaryIO

from vidgen.interop.tensors import shown

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 32 << 20  # some 300,000 members
_END = struct.Struct("<4s4H2LH")
_END64_AT = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF  # a 32-bit field whose value is in the 64-bit extra field


@dataclasses.dataclass(frozen=True)
class Member:
  """First and last + 1 byte of one member's content; `stored` when it lies there uncompressed."""

  begin: int
  end: int
  stored: bool


def members(path: Path) -> dict[str, Member]:
  """All members by name.

  Raises:
    ValueError: the file is not a zip file whose members lie apart from each other, or is one of
      several disks, encrypted, or has a name twice.
  """
  try:
    with open(path, "rb") as file:
      return _members(file, path.stat().st_size)
  except struct.error as error:
    raise ValueError(f"a damaged zip file: {error}") from error


def _members(file: BinaryIO, size: int) -> dict[str, Member]:
  begin, length = _directory(file, size)
  file.seek(begin)
  directory = file.read(length)
  found: dict[str, Member] = {}
  taken = []
  at = 0
  while at < len(directory):
    entry = _ENTRY.unpack_from(directory, at)
    signature, _, _, flags, method, _, _, _, packed, plain, names, extras, notes = entry[:13]
    local = entry[16]
    if signature != b"PK\x01\x02":
      raise ValueError("a damaged directory of members")
    at += _ENTRY.size
    raw = directory[at : at + names]
    extra = directory[at + names : at + names + extras]
    at += names + extras + notes
    if at > len(directory):
      raise ValueError("a directory of members that is cut short")
    name = raw.decode("utf-8")
    plain, packed, local = _wide(extra, (plain, packed, local))
    if flags & 0x2041:
      raise ValueError(f"member {shown(name)} is encrypted")
    if name in found:
      raise ValueError(f"member {shown(name)} comes twice")
    first = _content(file, local, raw, begin)
    if first + packed > begin or (method == 0 and packed != plain):
      raise ValueError(f"member {shown(name)} of {packed:,} bytes does not fit where it is")
    found[name] = Member(first, first + packed, method == 0)
    taken.append((local, first + packed, name))
  taken.sort()
  for (_, end, name), (start, _, other) in zip(taken, taken[1:], strict=False):
    if start < end:
      raise ValueError(f"members {shown(name)} and {shown(other)} overlap")
  return found


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
  """Begin and length of the directory of members, from the record at the end of the file."""
  tail = min(size, 65535 + _END.size + _END64_AT.size)
  file.seek(size - tail)
  text = file.read(tail)
  at = text.rfind(b"PK\x05\x06")
  if at < 0 or at + _END.size > len(text):
    raise ValueError("no end of a zip file: cut short, or none")
  _, disk, first_disk, here, total, length, begin, _ = _END.unpack_from(text, at)
  limit = size - tail + at
  before = at - _END64_AT.size
  if before >= 0 and text[before : before + 4] == b"PK\x06\x07":
    _, _, position, _ = _END64_AT.unpack_from(text, before)
    if position + _END64.size > size:
      raise ValueError("its 64-bit end is beyond the file")
    file.seek(position)
    signature, _, _, _, disk, first_disk, here, total, length, begin = _END64.unpack(
      file.read(_END64.size)
    )
    if signature != b"PK\x06\x06":
      raise ValueError("a damaged 64-bit end of a zip file")
    limit = position
  if disk or first_disk or here != total:
    raise ValueError("a zip file in several parts")
  if length > MAX_DIRECTORY_BYTES:
    raise ValueError(f"a directory of {length:,} bytes, more than {MAX_DIRECTORY_BYTES:,}")
  if begin + length != limit:
    raise ValueError("its directory of members is not before its end")
  return begin, length


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
  """Size, packed size and position, those taken from the 64-bit extra field that are there."""
  at = 0
  while at + 4 <= len(extra):
    kind, length = struct.unpack_from("<HH", extra, at)
    if kind == 1:
      field = extra[at + 4 : at + 4 + length]
      wide, position = [], 0
      for value in values:
        if value == _FULL:
          wide.append(struct.unpack_from("<Q", field, position)[0])
          position += 8
        else:
          wide.append(value)
      return wide[0], wide[1], wide[2]
    at += 4 + length
  return values


def _content(file: BinaryIO, local: int, name: bytes, limit: int) -> int:
  """Where a member's content begins, after its own header, which must say the same name."""
  if local + _LOCAL.size > limit:
    raise ValueError(f"member {shown(name)} begins beyond the members")
  file.seek(local)
  signature, *_, names, extras = _LOCAL.unpack(file.read(_LOCAL.size))
  if signature != MAGIC or file.read(names) != name:
    raise ValueError(f"member {shown(name)} is not where the directory says")
  return local + _LOCAL.size + names + extras

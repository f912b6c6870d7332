"""Safetensors files, whoever made them: the header checked before anything is believed.

A file is 8 bytes of length, a JSON header, and the bytes of all arrays one after the other. All of
it is compared with the size of the file first, so that no header can ask for memory that the file
does not have.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.tensors import DTYPES, MAX_NAME, TensorSpec, nbytes, shown
from vidgen.whole_file import whole_file

SUFFIX = ".safetensors"
METADATA = "__metadata__"
MAX_HEADER_BYTES = 16 << 20  # some 100,000 arrays


class SafetensorsFile:
  """One file, memory-mapped; its arrays are views of it.

  Raises:
    CheckpointError: anything about it that is not as the format says, with the file and the array.
  """

  def __init__(self, path: Path):
    self.where = str(path)
    self.path = path
    try:
      with open(path, "rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
          raise ValueError(f"a header of {length:,} bytes does not fit a file of {size:,}")
        if length > MAX_HEADER_BYTES:
          raise ValueError(f"a header of {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
        tree = strict_json(file.read(length))
      begin = 8 + length
      self._ranges = _ranges(tree, size - begin)
    except (OSError, ValueError, RecursionError) as error:
      raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    self.specs = {
      name: TensorSpec(tuple(tree[name]["shape"]), DTYPES[tree[name]["dtype"]].name)
      for name in self._ranges
    }
    self.metadata: dict[str, str] = tree.get(METADATA, {})
    self._dtypes = {name: DTYPES[tree[name]["dtype"]] for name in self._ranges}
    self._begin = begin
    self._bytes: np.ndarray | None = None

  def read(self, name: str) -> np.ndarray:
    """A view of the file."""
    if name not in self._ranges:
      raise CheckpointError(f"{self.where}: no array {name}")
    if self._bytes is None:
      self._bytes = np.memmap(self.path, np.uint8, "r")
    first, last = (self._begin + offset for offset in self._ranges[name])
    if last > len(self._bytes):
      raise CheckpointError(f"{self.where}: {name}: the file has become shorter")
    # Not np.memmap for each: a view keeps the one map alive.
    flat = np.asarray(self._bytes)[first:last].view(self._dtypes[name])
    return flat.reshape(self.specs[name].shape)


def write_safetensors(
  path: Path,
  specs: Mapping[str, TensorSpec],
  *,
  parts: Callable[[str], Iterable[np.ndarray]],
  metadata: Mapping[str, str],
) -> str:
  """Writes a file, whole or not at all, array by array, and returns its SHA-256.

  `parts(name)` gives an array in pieces, such as one a layer, which follow each other in C order.

  Raises:
    ValueError: the pieces are not of the dtype, or not together of the size, that `specs` says.
  """
  header: dict[str, Any] = {METADATA: dict(metadata)}
  at = 0
  # Larger elements first, which keeps every array aligned.
  order = sorted(specs, key=lambda name: (-np.dtype(specs[name].dtype).itemsize, name))
  for name in order:
    shape, dtype = specs[name].shape, specs[name].dtype
    size = nbytes(shape, np.dtype(dtype))
    header[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [at, at + size],
    }
    at += size
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that arrays begin at multiples of 8
  sha256 = hashlib.sha256()
  with whole_file(path) as temporary, open(temporary, "wb") as file:

    def write(content: Any) -> int:
      sha256.update(content)
      return file.write(content)

    write(len(text).to_bytes(8, "little") + text)
    for name in order:
      first, last = header[name]["data_offsets"]
      for part in parts(name):
        if part.dtype.name != specs[name].dtype:
          raise ValueError(f"{name}: a piece of {part.dtype.name}, not {specs[name].dtype}")
        first += write(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
      if first != last:
        raise ValueError(f"{name}: pieces of {last - first} bytes too few")
  return sha256.hexdigest()


_CODES = {dtype.name: code for code, dtype in DTYPES.items()}


def strict_json(text: bytes) -> Any:
  """An object of JSON whose keys are all different.

  Raises:
    ValueError: it is not JSON, or a key comes twice; RecursionError where it nests too deep.
  """
  tree = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
  if not isinstance(tree, dict):
    raise ValueError("its JSON is no object")
  return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    last = {name: at for at, (name, _) in enumerate(pairs)}
    twice = next(name for at, (name, _) in enumerate(pairs) if last[name] != at)
    raise ValueError(f"key {shown(twice)} comes twice")
  return found


def _no_constant(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")


def _ranges(tree: Mapping[str, Any], size: int) -> dict[str, tuple[int, int]]:
  """First and last + 1 byte of every array after the header, in the order of the file."""
  metadata = tree.get(METADATA, {})
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise ValueError(f"{METADATA} does not map text to text")
  ranges = {}
  for name, entry in tree.items():
    if name == METADATA:
      continue
    try:
      ranges[name] = _range(name, entry)
    except ValueError as error:
      raise ValueError(f"array {shown(name)}: {error}") from error
  at = 0
  for name, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
    if first != at:
      kind = "overlaps the one before it" if first < at else f"leaves a hole of {first - at} bytes"
      raise ValueError(f"array {shown(name)}: its range {kind}")
    at = last
  if at != size:
    raise ValueError(f"its arrays take {at:,} bytes, and the file has {size:,} for them")
  return ranges


def _range(name: str, entry: Any) -> tuple[int, int]:
  if not name or len(name) > MAX_NAME:
    raise ValueError(f"a name of {len(name)} letters")
  if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise ValueError("not described by dtype, shape and data_offsets")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f"dtype {shown(dtype)} is not one of {', '.join(DTYPES)}")
  if not isinstance(shape, list):
    raise ValueError("its shape is no list")
  wanted = nbytes(shape, DTYPES[dtype])
  if not (
    isinstance(offsets, list)
    and len(offsets) == 2
    and all(type(offset) is int for offset in offsets)
    and 0 <= offsets[0] <= offsets[1]
  ):
    raise ValueError("data_offsets that are no range")
  if offsets[1] - offsets[0] != wanted:
    raise ValueError(
      f"{wanted:,} bytes of {dtype} {shape}, but a range of {offsets[1] - offsets[0]:,}"
    )
  return offsets[0], offsets[1]

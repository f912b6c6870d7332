"""One array a sample, in a file beside each shard of a data set: text embeddings, latents.

  magic     8 bytes
  payloads  the arrays one after another, C order, little endian
  index     a row of fixed size a sample, in the shard's order: where its array lies, its shape,
            and hashes of what it was made from and of its bytes
  about     JSON: the dtype, the number of samples, and whatever the writer says of the file
  tail      48 bytes: the lengths of index and about, and the SHA-256 of both together

An array may be shared by samples that were made from the same thing, and may be absent.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from vidgen.errors import DataError
from vidgen.inputs.storage import ShardFiles, patiently

MAGIC = b"VGARRAY1"
SUFFIX = ".arrays"
HASH = 16  # bytes that are kept of a SHA-256
MAX_ABOUT = 1 << 26  # bytes: it may name samples that have no array
MAX_INDEX = 1 << 31
DTYPES = {
  "bfloat16": ml_dtypes.bfloat16,
  "float16": np.float16,
  "float32": np.float32,
  "uint8": np.uint8,
}
_TAIL = struct.Struct("<QQ32s")


def short_hash(content: bytes) -> bytes:
  """The first `HASH` bytes of the SHA-256."""
  return hashlib.sha256(content).digest()[:HASH]


def _row(ndim: int) -> np.dtype:
  fields = [("offset", "<i8"), ("shape", "<i4", (ndim,)), ("source", "u1", (HASH,))]
  return np.dtype([*fields, ("content", "u1", (HASH,))])


def file_bytes(
  about: Mapping[str, Any], *, payload: int, samples: int, dtype: str, ndim: int
) -> int:
  """The size of a file with `payload` bytes of arrays, before it is written."""
  text = _about(about, samples=samples, dtype=dtype, ndim=ndim)
  return len(MAGIC) + payload + samples * _row(ndim).itemsize + len(text) + _TAIL.size


def _about(about: Mapping[str, Any], *, samples: int, dtype: str, ndim: int) -> bytes:
  own = {"dtype": dtype, "ndim": ndim, "samples": samples}
  return json.dumps({**about, **own}, sort_keys=True).encode()


class ArrayWriter:
  """Writes one file, arrays in any order; `close` makes it whole. Used within `whole_file`."""

  def __init__(self, path: Path, *, samples: int, dtype: str, ndim: int):
    self._file: BinaryIO = open(path, "wb")
    self._file.write(MAGIC)
    self._offset = len(MAGIC)
    self._dtype, self._ndim = dtype, ndim
    self._index = np.zeros(samples, _row(ndim))
    self._index["offset"] = -1

  def add(self, samples: Sequence[int], array: np.ndarray, *, source: bytes) -> None:
    """`array` for these samples of the shard, which `source` (its hash is kept) made it."""
    array = np.ascontiguousarray(array, DTYPES[self._dtype])
    if array.ndim != self._ndim:
      raise ValueError(f"an array of shape {array.shape} where {self._ndim} axes are due")
    content = array.tobytes()
    rows = np.asarray(samples)
    self._index["offset"][rows] = self._offset
    self._index["shape"][rows] = array.shape
    self._index["source"][rows] = np.frombuffer(short_hash(source), np.uint8)
    self._index["content"][rows] = np.frombuffer(short_hash(content), np.uint8)
    self._file.write(content)
    self._offset += len(content)

  def close(self, about: Mapping[str, Any]) -> None:
    """Writes the index and `about`, plain JSON."""
    text = _about(about, samples=len(self._index), dtype=self._dtype, ndim=self._ndim)
    index = self._index.tobytes()
    sha256 = hashlib.sha256(index + text).digest()
    self._file.write(index + text + _TAIL.pack(len(index), len(text), sha256))
    self._file.close()

  def abandon(self) -> None:
    """Lets go of a file that will not be whole."""
    self._file.close()


@dataclasses.dataclass
class ArrayShard:
  """A file of arrays, whose index has been read and checked; arrays are read one at a time.

  Raises:
    DataError: missing, damaged, or of another format; the file is named.
  """

  path: Path
  remedy: str = "make it again"  # what the messages advise
  files: ShardFiles = dataclasses.field(default_factory=ShardFiles, repr=False, compare=False)

  def __post_init__(self):
    self._load()

  def __getstate__(self):
    return {"path": self.path, "remedy": self.remedy}

  def __setstate__(self, state):
    self.__dict__.update(state, files=ShardFiles())
    self.__post_init__()

  def __len__(self) -> int:
    return len(self._index)

  def _load(self) -> None:
    if not self.path.is_file():
      raise self._bad("missing")
    size = self.path.stat().st_size
    if size < len(MAGIC) + _TAIL.size or self._read(0, len(MAGIC)) != MAGIC:
      raise self._bad("not a file of arrays, or cut short")
    index_size, about_size, sha256 = _TAIL.unpack(self._read(size - _TAIL.size, _TAIL.size))
    start = size - _TAIL.size - index_size - about_size
    if start < len(MAGIC) or about_size > MAX_ABOUT or index_size > MAX_INDEX:
      raise self._bad("damaged, or cut short")
    table = self._read(start, index_size + about_size)
    if hashlib.sha256(table).digest() != sha256:
      raise self._bad("damaged: the sha256 of its index differs")
    try:
      self.about: dict[str, Any] = json.loads(table[index_size:])
      self.dtype = np.dtype(DTYPES[self.about["dtype"]])
      row = _row(int(self.about["ndim"]))
      self._index = np.frombuffer(table[:index_size], row)
      if len(self._index) != self.about["samples"]:
        raise ValueError("another number of samples")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise self._bad(f"damaged: {type(error).__name__}: {error}") from error
    there = self._index["offset"] >= 0
    shapes = self._index["shape"].astype(np.float64)  # which cannot overflow
    ends = self._index["offset"] + shapes.prod(axis=1) * self.dtype.itemsize
    if (shapes < 0).any() or (ends[there] > start).any():
      raise self._bad("damaged: its index points outside of it")

  def _bad(self, reason: str) -> DataError:
    return DataError(f"{self.path}: {reason}; {self.remedy}")

  def _read(self, offset: int, size: int) -> bytes:
    data = patiently(lambda: self.files.read(self.path, offset, size), shard=str(self.path))
    if len(data) != size:
      raise self._bad("cut short")
    return data

  @property
  def there(self) -> np.ndarray:
    """For which samples there is an array, bool [samples]."""
    return self._index["offset"] >= 0

  def has(self, sample: int) -> bool:
    """Whether there is an array for a sample."""
    return bool(self._index["offset"][sample] >= 0)

  def read(self, sample: int, *, source: bytes) -> np.ndarray:
    """The array of a sample, which must have been made from `source`.

    Raises:
      DataError: there is none, it was made from something else, or its bytes have changed.
    """
    row = self._index[sample]
    if row["offset"] < 0:
      raise self._bad(f"has nothing for sample {sample}")
    if row["source"].tobytes() != short_hash(source):
      raise self._bad(f"sample {sample} was made from something else than is there now")
    shape = row["shape"].tolist()
    content = self._read(int(row["offset"]), int(np.prod(shape)) * self.dtype.itemsize)
    if short_hash(content) != row["content"].tobytes():
      raise self._bad(f"sample {sample}: its bytes have changed; remove the file")
    return np.frombuffer(content, self.dtype).reshape(shape)

"""Weights in PyTorch's own files, without PyTorch and without unpickling.

Three formats: the zip archive (since version 1.6), the older sequence of pickles with the memory of
all tensors after them, and TorchScript archives, of which only the tree of attributes is looked at.
`inert_pickle` reads the pickles; every tensor is compared with the file's size before it is there.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.inert_pickle import Record, Storage, Tensor, read_pickle
from vidgen.interop.tensors import MAX_NAME, TensorSpec, nbytes, shown
from vidgen.interop.zip_members import MAGIC, Member, members

MAX_PICKLE_BYTES = 16 << 20
MAX_DEPTH = 64  # of containers in each other
MAX_VALUES = 1_000_000  # in all of them, counting each as often as it is met
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class TorchFile:
  """One file; arrays are memory-mapped, with the names that lead to them, joined by dots.

  Raises:
    CheckpointError: it is damaged, or holds anything but weights; what it names is not run.
  """

  def __init__(self, path: Path):
    self.where = str(path)
    self.path = path
    try:
      with open(path, "rb") as file:
        zipped = file.read(4) == MAGIC
      tree = self._open_zip() if zipped else self._open_legacy()
      self._tensors = dict(_named_tensors(tree))
      for name, tensor in self._tensors.items():
        try:
          self._check(tensor)
        except ValueError as error:
          raise ValueError(f"tensor {shown(name)}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
      raise CheckpointError(f"{path}: not a PyTorch file of weights: {error}") from error
    self.specs = {
      name: TensorSpec(tensor.shape, tensor.dtype.name) for name, tensor in self._tensors.items()
    }
    self._bytes: np.ndarray | None = None

  def read(self, name: str) -> np.ndarray:
    """A view of the file; a copy where the file's byte order is not this machine's."""
    if name not in self._tensors:
      raise CheckpointError(f"{self.where}: no tensor {shown(name)}")
    tensor = self._tensors[name]
    member = self._members[tensor.storage.key]
    if 0 in tensor.shape:
      return np.zeros(tensor.shape, tensor.dtype)
    if self._bytes is None:
      self._bytes = np.memmap(self.path, np.uint8, "r")
    if member.end > len(self._bytes):
      raise CheckpointError(f"{self.where}: {shown(name)}: the file has become shorter")
    size = tensor.dtype.itemsize
    view = np.ndarray(
      tensor.shape,
      tensor.dtype,
      buffer=np.asarray(self._bytes)[member.begin : member.end],
      offset=tensor.offset * size,
      strides=[stride * size for stride in tensor.strides],
    )
    return view if self._little else _swapped(view)

  def _open_zip(self) -> Any:
    found = members(self.path)
    pickles = [n for n in found if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
      raise ValueError(f"{len(pickles)} members named data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    noted = root + "byteorder"  # absent from files older than 2.1
    order = self._member(found, noted, 16) if noted in found else b"little"
    if order not in (b"little", b"big"):
      raise ValueError(f"byte order {shown(order)}")
    self._little = order == b"little"
    data = root + "data/"
    self._members = {n.removeprefix(data): m for n, m in found.items() if n.startswith(data)}
    return read_pickle(io.BytesIO(self._member(found, pickles[0], MAX_PICKLE_BYTES)))

  def _member(self, found: dict[str, Member], name: str, limit: int) -> bytes:
    member = found[name]
    if not member.stored or member.end - member.begin > limit:
      raise ValueError(f"member {shown(name)} is compressed, or has more than {limit:,} bytes")
    with open(self.path, "rb") as file:
      file.seek(member.begin)
      return file.read(member.end - member.begin)

  def _open_legacy(self) -> Any:
    size = self.path.stat().st_size
    with open(self.path, "rb") as file:
      head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if read_pickle(head) != LEGACY_MAGIC:
      raise ValueError("a pickle, but none that torch.save writes")
    if (protocol := read_pickle(head)) != LEGACY_PROTOCOL:
      raise ValueError(f"protocol {shown(protocol)}")
    system = read_pickle(head)
    self._little = not isinstance(system, dict) or system.get("little_endian", True) is not False
    tree = read_pickle(head)
    keys = read_pickle(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
      raise ValueError("no list of storages after the pickle")
    self._members = {}
    storages = {t.storage.key: t.storage for _, t in _named_tensors(tree)}
    at = head.tell()
    with open(self.path, "rb") as file:
      for key in keys:
        if key in self._members or key not in storages:
          raise ValueError(f"storage {shown(key)} comes twice, or belongs to no tensor")
        file.seek(at)
        count = int.from_bytes(file.read(8), "little" if self._little else "big")
        if count != storages[key].size:
          raise ValueError(
            f"storage {shown(key)} of {count:,} elements, not {storages[key].size:,}"
          )
        end = at + 8 + count * storages[key].dtype.itemsize
        if end > size:
          raise ValueError(f"storage {shown(key)} ends beyond the file: cut short")
        self._members[key] = Member(at + 8, end, True)
        at = end
    if at != size:
      raise ValueError(f"{size - at:,} bytes after the last storage")
    return tree

  def _check(self, tensor: Tensor) -> None:
    """That the view lies within its storage, and the storage within the file."""
    storage: Storage = tensor.storage
    member = self._members.get(storage.key)
    if member is None or not member.stored:
      raise ValueError(f"storage {shown(storage.key)} is missing, or compressed")
    if member.end - member.begin != storage.size * storage.dtype.itemsize:
      raise ValueError(
        f"storage {shown(storage.key)} has {member.end - member.begin:,} bytes, not"
        f" {storage.size:,} of {storage.dtype.name}"
      )
    if len(tensor.strides) != len(tensor.shape):
      raise ValueError(f"shape {tensor.shape} and strides {tensor.strides} differ in length")
    if nbytes(tensor.shape, tensor.dtype) == 0:
      return
    # No larger than its memory, so that a stride of zero cannot blow it up.
    if nbytes(tensor.shape, tensor.dtype) > member.end - member.begin:
      raise ValueError(f"shape {tensor.shape} is larger than its storage")
    sizes = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in sizes)
    if (last + 1) * tensor.dtype.itemsize > member.end - member.begin:
      raise ValueError(f"element {last:,} is beyond its storage")
    if (member.end - member.begin) % tensor.dtype.itemsize:
      raise ValueError(f"its storage is no whole number of {tensor.dtype.name}")


def _named_tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
  """Every tensor of a tree of containers, by the keys that lead to it; other values are left out.

  Raises:
    ValueError: a name comes twice, or containers nest without end.
  """
  met, names = 0, set()
  waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
  while waiting:
    path, value, depth = waiting.pop()
    met += 1
    if met > MAX_VALUES or depth > MAX_DEPTH or len(path) > MAX_NAME:
      raise ValueError(f"containers in each other without end, at {shown(path)}")
    if isinstance(value, Tensor):
      if path in names:
        raise ValueError(f"two tensors are named {shown(path)}")
      names.add(path)
      yield path, value
    elif isinstance(value, Record | dict | list | tuple):
      if isinstance(value, Record):
        value = value.attributes
      items = value.items() if isinstance(value, dict) else enumerate(value)
      met += len(value)
      children = [
        (f"{path}.{key}" if path else str(key), child, depth + 1)
        for key, child in items
        if isinstance(child, Tensor | Record | dict | list | tuple)
      ]
      waiting += reversed(children)


def _swapped(array: np.ndarray) -> np.ndarray:
  """An array of the other byte order in this machine's; bfloat16 has no byte order of its own."""
  flat = np.ascontiguousarray(array)
  if array.dtype.itemsize == 1:
    return flat
  if array.dtype.kind == "c":
    return flat.byteswap()
  return flat.view(f"u{array.dtype.itemsize}").byteswap().view(array.dtype)

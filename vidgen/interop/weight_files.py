"""Other people's weights, whatever files they are in: `open_weights` is the one way in.

Nothing is unpickled, nothing a file names is opened as a path unless it is a plain name beside it,
and nothing is read before it is asked for.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.inputs.storage import file_sha256
from vidgen.interop.safetensors_files import SUFFIX, SafetensorsFile, strict_json
from vidgen.interop.tensors import MemoryWeights, TensorSpec, Weights, WithoutPrefix, shown
from vidgen.interop.torch_files import TorchFile

__all__ = ["MemoryWeights", "TensorSpec", "Weights", "WeightFiles", "open_weights"]

INDEX = ".index.json"
TORCH = (".bin", ".pt", ".pth", ".ckpt")
MAX_INDEX_BYTES = 16 << 20
# Of several files in a folder, the first of these stems that is there; transformers', diffusers'.
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "weights")


@runtime_checkable
class _File(Protocol):
  """One file of arrays."""

  @property
  def specs(self) -> Mapping[str, TensorSpec]: ...

  def read(self, name: str) -> np.ndarray: ...


class WeightFiles:
  """The arrays of one file, or of several that an index puts together."""

  def __init__(
    self,
    files: Mapping[Path, _File],
    *,
    where: str,
    file_digest: Callable[[Path], str] = file_sha256,
  ):
    self.where = where
    self._file_digest = file_digest
    self._digest: str | None = None
    self.paths = tuple(sorted(files))
    self._owner: dict[str, _File] = {}
    for path in self.paths:
      for name in files[path].specs:
        if name in self._owner:
          raise CheckpointError(f"{path}: array {shown(name)} is in another shard, too")
        self._owner[name] = files[path]
    self.specs = {name: self._owner[name].specs[name] for name in sorted(self._owner)}

  @property
  def digest(self) -> str:
    """SHA-256 of the file, or over the names and SHA-256 of all shards; read once."""
    if self._digest is None:
      self._digest = self._hash()
    return self._digest

  def _hash(self) -> str:
    found = {path.name: self._file_digest(path) for path in self.paths}
    if len(found) == 1:
      return next(iter(found.values()))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

  def read(self, name: str) -> np.ndarray:
    """The whole array; a view of the memory-mapped file where it lies there in order."""
    if name not in self._owner:
      raise CheckpointError(f"{self.where}: no array {shown(name)}")
    return self._owner[name].read(name)


def open_weights(
  path: str | Path, *, prefix: str = "", file_digest: Callable[[Path], str] = file_sha256
) -> Weights:
  """The arrays of a safetensors or PyTorch file, or of a folder with either, sharded or not.

  Arrays in nested containers of a PyTorch file have dotted names. With `prefix`, such as
  "state_dict.", only arrays whose name begins with it are there, without it. `file_digest` gives
  the SHA-256 of a file, for callers that remember it.

  Raises:
    CheckpointError: missing, damaged, or not of weights only; the file and array are named.
  """
  path = Path(path)
  if path.is_dir():
    found = _of_folder(path, file_digest)
  elif path.name.endswith(INDEX):
    found = _of_index(path, file_digest)
  else:
    found = WeightFiles({path: _open(path)}, where=str(path), file_digest=file_digest)
  return WithoutPrefix(found, prefix) if prefix else found


def _open(path: Path) -> _File:
  if not path.is_file():
    raise CheckpointError(f"{path}: no such file")
  return SafetensorsFile(path) if path.name.endswith(SUFFIX) else TorchFile(path)


def _of_folder(folder: Path, file_digest: Callable[[Path], str]) -> WeightFiles:
  """The weights of a folder: safetensors before PyTorch's files, an index before single files."""
  names = sorted(entry.name for entry in folder.iterdir())
  for ending in (SUFFIX + INDEX, SUFFIX, ".bin" + INDEX, *TORCH):
    there = [name for name in names if name.endswith(ending) and not name.startswith(".")]
    known = [stem + ending for stem in STEMS if stem + ending in there]
    if known or len(there) == 1:
      path = folder / (known or there)[0]
      if ending.endswith(INDEX):
        return _of_index(path, file_digest)
      files = {path: _open(_beside(folder, path.name))}
      return WeightFiles(files, where=str(path), file_digest=file_digest)
    if there:
      raise CheckpointError(f"{folder}: several files of weights, name one: {', '.join(there[:8])}")
  raise CheckpointError(f"{folder}: holds no weights ({', '.join((SUFFIX, *TORCH))})")


def _of_index(path: Path, file_digest: Callable[[Path], str]) -> WeightFiles:
  """The shards that an index lists, which must hold what it says of each and nothing else."""
  try:
    if path.stat().st_size > MAX_INDEX_BYTES:
      raise ValueError(f"more than {MAX_INDEX_BYTES:,} bytes")
    table = strict_json(path.read_bytes()).get("weight_map")
    if not isinstance(table, dict) or not table:
      raise ValueError("its weight_map is missing or empty")
    if bad := [n for n, file in table.items() if not isinstance(file, str)]:
      raise ValueError(f"array {shown(bad[0])}: its file is no name")
  except (OSError, ValueError, RecursionError) as error:
    raise CheckpointError(f"{path}: not an index of weights: {error}") from error
  shards = {name: _beside(path.parent, name) for name in sorted(set(table.values()))}
  files = {shards[name]: _open(shards[name]) for name in shards}
  whole = WeightFiles(files, where=str(path), file_digest=file_digest)
  for name, shard in table.items():
    if name not in files[shards[shard]].specs:
      raise CheckpointError(f"{path}: array {shown(name)} is not in {shard}")
  if extra := sorted(set(whole.specs) - set(table)):
    raise CheckpointError(f"{path}: array {shown(extra[0])} is in a shard but not in the index")
  return whole


def _beside(folder: Path, name: str) -> Path:
  """A file in a folder, of a plain name; links lead nowhere else than a model hub's own store."""
  if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", name):
    raise CheckpointError(f"{folder}: {shown(name)} is no plain file name")
  path = folder / name
  real, home = path.resolve(), folder.resolve()
  store = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
  if real.parent not in (home, store):
    raise CheckpointError(f"{path}: a link to {real}, outside of its folder")
  return path

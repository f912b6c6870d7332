"""The manifest of a checkpoint: what every file and every array in it must hash to.

Orbax restores a flipped bit in an array without a word, so each checkpoint carries `manifest.json`:
size and SHA-256 of every file, shape, dtype and SHA-256 of every array, and four digests that say
whether two checkpoints are equal. Array hashes are of the logical bytes in C order, so they do not
change with the mesh, the file layout or the compression. Names in a manifest are compared with what
lies on disk and are never opened as paths.
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen import config as cfg
from vidgen.errors import CheckpointError, ConfigError
from vidgen.whole_file import write_whole

FILE = "manifest.json"
FORMAT = 1
MAX_BYTES = 256 << 20  # a manifest of 30B parameters on 256 chips is some 10 MB
# digest -> the items it covers; "optimizer" also covers the step and every other counter
COVERS = {"params": ("params",), "ema": ("ema",), "optimizer": ("opt_state", "counters")}
THREADS = min(16, 2 * (os.cpu_count() or 1))  # hashing releases the interpreter lock


class Damaged(CheckpointError):
  """A checkpoint is not what was saved: something in it is missing, foreign or altered."""


@dataclasses.dataclass(frozen=True)
class FileRecord:
  """One file: its name relative to the checkpoint, with "/" between parts, and its contents."""

  name: str
  size: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
  """One array: the item it belongs to, its path in the item's tree, and its logical contents."""

  item: str
  path: str
  shape: tuple[int, ...]
  dtype: str
  sha256: str

  @property
  def name(self) -> str:
    """Item and path, such as "params/blocks/kernel"."""
    return f"{self.item}/{self.path}"

  @property
  def abstract(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype, without a sharding."""
    return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))


@dataclasses.dataclass(frozen=True)
class Manifest:
  """All that is known of one checkpoint; nothing in it depends on the time or the machine."""

  format: int
  step: int
  versions: Mapping[str, str]
  config: str
  files: tuple[FileRecord, ...]
  arrays: tuple[ArrayRecord, ...]
  digests: Mapping[str, str]


def array_sha256(array: np.ndarray) -> str:
  """SHA-256 of the logical bytes of `array`: C order, little endian."""
  if array.dtype.byteorder == ">":
    array = array.astype(array.dtype.newbyteorder("<"))
  return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def record_arrays(item: str, arrays: Mapping[str, np.ndarray]) -> list[ArrayRecord]:
  """Hashes every array of an item, given by path; several at a time."""
  with ThreadPoolExecutor(THREADS) as pool:
    hashes = pool.map(array_sha256, arrays.values())
    return [
      ArrayRecord(item, path, array.shape, array.dtype.name, sha256)
      for (path, array), sha256 in zip(arrays.items(), hashes, strict=True)
    ]


def record_files(directory: Path, *, only: Iterable[str] | None = None) -> list[FileRecord]:
  """Hashes the files under `directory`, or those of the names in `only`; not the manifest itself.

  Raises:
    Damaged: something there is neither a directory nor a regular file (a link, a device).
  """
  names = sorted(_files(directory) if only is None else only)
  with ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(lambda name: _record_file(directory, name), names))


def _record_file(directory: Path, name: str) -> FileRecord:
  with open(directory / name, "rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(name, file.tell(), sha256)


def _files(directory: Path) -> dict[str, int]:
  """Sizes of all regular files but the manifest, by relative name; links are refused."""
  sizes = {}
  for parent, directories, files in os.walk(directory):
    for name in (*directories, *files):
      path = Path(parent, name)
      relative = path.relative_to(directory).as_posix()
      if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise Damaged(f"{directory}: {relative} is not a regular file")
      if path.is_file() and relative != FILE:
        sizes[relative] = path.stat().st_size
  return sizes


def digests(arrays: Iterable[ArrayRecord], data: Any) -> dict[str, str]:
  """SHA-256 of params, ema, optimizer (with step and counters) and data position.

  Equal digests mean equal names, shapes, dtypes and bits. `data` is the list of the data states of
  all processes, as JSON.
  """
  lines = sorted((a.name, a.dtype, list(a.shape), a.sha256, a.item) for a in arrays)
  result = {
    name: cfg.digest([line[:4] for line in lines if line[4] in items])
    for name, items in COVERS.items()
  }
  return {**result, "data": cfg.digest(data)}


def versions() -> dict[str, str]:
  """Versions of what wrote a checkpoint."""
  packages = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "vidgen")
  return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def write(directory: Path, manifest: Manifest) -> None:
  """Writes `manifest.json` so that it is either absent or whole, also after a power cut."""
  body = cfg.canonical_json(manifest)
  text = json.dumps({"manifest": json.loads(body), "sha256": _sha256(body)}, indent=1)
  write_whole(directory / FILE, text.encode())
  sync(directory)


def sync(path: Path) -> None:
  """Asks the system to make a file, or the names in a directory, durable."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def sync_all(directory: Path) -> None:
  """`sync` for `directory` and everything below it (Orbax syncs its array data only)."""
  for parent, _, files in os.walk(directory, topdown=False):
    for name in files:
      sync(Path(parent, name))
    sync(Path(parent))


def read(directory: Path) -> Manifest:
  """Reads a manifest and checks it against its own hash.

  Raises:
    Damaged: it is missing, or differs in any byte from what was written.
  """
  path = directory / FILE
  try:
    if path.stat().st_size > MAX_BYTES:
      raise Damaged(f"{path}: larger than {MAX_BYTES} bytes")
    text = path.read_text()
    tree = json.loads(text)
    body = tree["manifest"]
    if json.dumps(tree, indent=1) != text or tree["sha256"] != _sha256(cfg.canonical_json(body)):
      raise Damaged(f"{path}: damaged: it does not match its own sha256")
    if body["format"] != FORMAT:
      raise Damaged(f"{path}: format {body['format']}; this version reads {FORMAT}")
    return cfg.build(Manifest, body, path=FILE)
  except FileNotFoundError:
    raise Damaged(f"{path}: missing") from None
  except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
    raise Damaged(f"{path}: damaged: {type(error).__name__}: {error}") from error


def damaged_files(directory: Path, manifest: Manifest) -> dict[str, str]:
  """Compares the files below `directory` with the manifest: name -> what is wrong with it.

  Sizes and names are compared first, and contents only where those agree.
  """
  found, wanted = _files(directory), {f.name: f for f in manifest.files}
  problems = {name: "missing" for name in wanted.keys() - found.keys()}
  problems |= {name: "not in the manifest" for name in found.keys() - wanted.keys()}
  for name in found.keys() & wanted.keys():
    if found[name] != wanted[name].size:
      problems[name] = f"{found[name]} bytes, not {wanted[name].size}"
  for record in record_files(directory, only=found.keys() - problems.keys()):
    if record != wanted.get(record.name):
      problems[record.name] = "its sha256 differs from the manifest"
  return dict(sorted(problems.items()))


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()

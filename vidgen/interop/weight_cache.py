"""Converted weights on disk, so that other people's files are converted once.

An entry is a safetensors file of our arrays in the dtype asked for, with its SHA-256 beside it; its
name is the digest of the source's content, of the layout and the dtype. It is written whole or not
at all, and the same bytes whoever writes it, so that processes need no lock. Every use verifies it,
and an entry that does not match its SHA-256 is made again, which stderr is told.

Nothing is kept unless a folder is named, by an argument or by VIDGEN_WEIGHT_CACHE: an entry is as
large as the weights.

The digest of a source reads all of it. It is remembered in the folder by path, size, inode and
times of modification and of change; the last of these cannot be set back, as the others can.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidgen import config as cfg
from vidgen.inputs.storage import file_sha256
from vidgen.interop.layout import (
  Layout,
  Source,
  check_layout,
  load_params,
  read_array,
  target_dtype,
)
from vidgen.interop.safetensors_files import SUFFIX, strict_json, write_safetensors
from vidgen.interop.tensors import TensorSpec, Weights
from vidgen.interop.weight_files import open_weights
from vidgen.train.items import flatten
from vidgen.whole_file import write_whole

VARIABLE = "VIDGEN_WEIGHT_CACHE"
FORMAT = 1
DIGESTS = "digests"
MAX_NOTE_BYTES = 1 << 16


def cache_folder(cache: str | Path | None) -> Path | None:
  """The folder that is asked for, by `cache` or by the environment; None for no cache."""
  named = cache or os.environ.get(VARIABLE)
  return Path(named).expanduser() if named else None


def remembering(folder: Path) -> Callable[[Path], str]:
  """A `file_sha256` that reads a file once, and again only after it was changed."""

  def digest(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    facts = {
      "path": str(real),
      "size": stat.st_size,
      "inode": stat.st_ino,
      "modified_ns": stat.st_mtime_ns,
      "changed_ns": stat.st_ctime_ns,
    }
    note = folder / DIGESTS / f"{cfg.digest(facts)}.json"
    known = _note(note)
    if known is not None and known.get("facts") == facts and isinstance(known.get("sha256"), str):
      return known["sha256"]
    sha256 = file_sha256(real)
    _try_to_write(note, {"facts": facts, "sha256": sha256})
    return sha256

  return digest


def cached_params(
  weights: Weights,
  layout: Layout,
  *,
  like: Any,
  shardings: Any = None,
  dtype: str = "float32",
  cache: str | Path | None = None,
) -> Any:
  """As `layout.load_params`, through the cache where there is one."""
  folder = cache_folder(cache)
  if folder is None:
    return load_params(weights, layout, like=like, shardings=shardings, dtype=dtype)
  entry = _entry(folder, weights, layout, like, dtype)
  if not _is_whole(entry):
    try:
      _write(entry, weights, layout, like, dtype)
    except OSError as error:
      print(f"{entry}: not cached: {error.strerror or error}", file=sys.stderr)
      return load_params(weights, layout, like=like, shardings=shardings, dtype=dtype)
  ours = Layout({path: Source((path,)) for path in flatten(like)})
  return load_params(open_weights(entry), ours, like=like, shardings=shardings, dtype=dtype)


def _entry(folder: Path, weights: Weights, layout: Layout, like: Any, dtype: str) -> Path:
  key = {
    "format": FORMAT,
    "source": weights.digest,
    "layout": layout,
    "shapes": {path: leaf.shape for path, leaf in flatten(like).items()},
    "dtype": dtype,
  }
  return folder / f"{cfg.digest(key)}{SUFFIX}"


def _is_whole(entry: Path) -> bool:
  """Whether an entry is there and what it was; says so on stderr if it is no longer."""
  note = _note(entry.with_suffix(".json"))
  if note is None or not entry.is_file():
    return False
  try:
    if file_sha256(entry) == note.get("sha256"):
      return True
    reason = "its sha256 is not the one recorded"
  except OSError as error:
    reason = str(error.strerror or error)
  print(f"{entry}: a damaged entry of the weight cache, made again: {reason}", file=sys.stderr)
  return False


def _write(entry: Path, weights: Weights, layout: Layout, like: Any, dtype: str) -> None:
  check_layout(weights, layout, like=like)
  leaves = flatten(like)
  specs = {
    path: TensorSpec(tuple(leaf.shape), target_dtype(leaf.dtype, dtype).name)
    for path, leaf in leaves.items()
  }

  def parts(path: str) -> Iterator[np.ndarray]:
    shape = leaves[path].shape
    whole = (slice(None),) * len(shape)
    layers = range(shape[0]) if layout.sources[path].layered else ()
    for index in [(slice(i, i + 1), *whole[1:]) for i in layers] or [whole]:
      yield read_array(weights, layout, path, like=leaves[path], dtype=dtype, index=index)

  entry.parent.mkdir(parents=True, exist_ok=True)
  sha256 = write_safetensors(entry, specs, parts=parts, metadata={"source": weights.digest})
  write_whole(entry.with_suffix(".json"), cfg.canonical_json({"sha256": sha256}).encode())


def _note(path: Path) -> dict[str, Any] | None:
  """A small JSON file, or None where there is none that can be read."""
  try:
    if path.stat().st_size > MAX_NOTE_BYTES:
      return None
    return strict_json(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return None


def _try_to_write(path: Path, tree: Any) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(tree).encode())
  except OSError:  # a folder one may only read: the digest is computed again next time
    return

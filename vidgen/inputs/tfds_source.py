"""Samples of a prepared TFDS data set, read without TensorFlow and without trust in its files."""

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidgen.errors import DataError
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import NoSuchSplit, Sample
from vidgen.inputs.storage import digest_ends, patiently_apart

MAX_FEATURES = 1 << 24  # bytes of a features.json; true ones have some thousands
OWN = re.compile(r"tensorflow_datasets(\.[A-Za-z_]\w*)+", re.ASCII)
CLASS_NAMES = ("pythonClassName", "python_class_name", "type")  # the last before TFDS 4.5


class _Opened(NamedTuple):
  """TFDS's own source, the files of the split, and the number after the last sample of each."""

  data: Any
  files: list[Path]
  ends: np.ndarray


class TfdsSource:
  """Samples of a prepared TFDS data set whose features are texts or bytes named by suffix.

  A feature "__key__" or "key" names the sample; a feature such as "mp4" holds an encoded file.
  Needs `file_format="array_record"`, with which TFDS reads without TensorFlow.
  """

  def __init__(self, directory: str | os.PathLike[str], *, split: str):
    self._directory = Path(directory)
    self._split = split
    self._length = len(self._open().data)

  def _open(self) -> _Opened:
    opened = self.__dict__.get("_opened")
    if opened is None:
      refuse_foreign_classes(self._directory / "features.json")
      import tensorflow_datasets as tfds

      try:
        builder: Any = tfds.builder_from_directory(self._directory)
        split = builder.info.splits.get(self._split)
        data = builder.as_data_source(split=self._split) if split else None
      except Exception as error:  # TFDS raises many kinds; all say that it cannot be read
        raise DataError(f"{self._directory}, split {self._split}: {error}") from error
      if split is None:
        raise NoSuchSplit(f"{self._directory}: no split {self._split}")
      parts = split.file_instructions
      files = [Path(part.filename) for part in parts]
      for file in files:  # dataset_info.json has a template for their names
        if Path(os.path.abspath(file)).parent != Path(os.path.abspath(self._directory)):
          raise DataError(f"{self._directory}/dataset_info.json: {file} is outside of the folder")
      ends = np.cumsum([part.take for part in parts])
      opened = self.__dict__["_opened"] = _Opened(data, files, ends)
    return opened

  def __getstate__(self):
    return {"_directory": self._directory, "_split": self._split, "_length": self._length}

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f"TfdsSource(split={self._split!r}, samples={len(self)})"

  def name(self, index: int) -> tuple[str, str]:
    """The split and the number of the sample."""
    return self._split, f"#{index}"

  def __getitem__(self, index: int) -> Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    shard, key = self.name(index)
    opened = self._open()
    file = opened.files[int(np.searchsorted(opened.ends, index, side="right"))]
    files = [self._directory / "features.json", self._directory / "dataset_info.json", file]
    try:
      record = patiently_apart(partial(self._read, index), files=files, shard=file.name, key=key)
    except BadSample as bad:  # which are listed by the split
      raise BadSample(f"{file.name}: {bad.reason}", shard=shard, key=key) from bad
    sample: Sample = {"__shard__": shard, "__key__": key}
    for name, value in record.items():
      value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
      value = value.encode() if isinstance(value, str) else value
      if not isinstance(value, bytes):
        continue  # numbers and arrays that describe the sample
      if name in ("__key__", "key"):
        sample["__key__"] = value.decode("utf-8", "replace")
      else:
        sample[name.lower()] = value
    return sample

  def _read(self, index: int) -> dict[str, Any]:
    try:
      return self._open().data[index]
    except Exception:
      self.__dict__.pop("_opened", None)  # its readers may go on failing
      raise

  @property
  def shards(self) -> list[str]:
    """The split: all of its files go by that name."""
    return [self._split]

  @property
  def problems(self) -> list[BadSample]:
    """None: the file's own hashes are checked when a record is read."""
    return []

  def describe(self) -> list[dict[str, Any]]:
    """One dict a shard of the split."""
    files = sorted(self._directory.glob(f"*-{self._split}.array_record*"))
    return [
      {
        "shard": path.name,
        "size": path.stat().st_size,
        "samples": len(self) if len(files) == 1 else None,
        "digest": digest_ends(path),
      }
      for path in files
    ]


def refuse_foreign_classes(path: Path) -> None:
  """Checks that features.json names no class but TFDS's own: TFDS imports the module of each.

  Raises:
    DataError: it names another, is not JSON, or is too large.
  """
  try:
    with open(path, "rb") as file:
      text = file.read(MAX_FEATURES + 1)
    if len(text) > MAX_FEATURES:
      raise DataError(f"{path}: more than {MAX_FEATURES} bytes")
    for name in _class_names(json.loads(text.decode("utf-8"))):
      if not OWN.fullmatch(name):
        raise DataError(
          f"{path}: names the class {name[:100]!r}, and only those of tensorflow_datasets are read"
        )
  except OSError as error:
    raise DataError(f"{path}: {error.strerror or error}") from error
  except (ValueError, RecursionError) as error:
    raise DataError(f"{path}: not readable as JSON: {error}") from error


def _class_names(tree: Any) -> Iterator[str]:
  """Every name of a feature class at any depth, also in JSON within texts, as old files have it."""
  rest = [tree]
  while rest:
    node = rest.pop()
    if isinstance(node, dict):
      yield from (node[k] for k in CLASS_NAMES if isinstance(node.get(k), str))
      rest += node.values()
    elif isinstance(node, list):
      rest += node
    elif isinstance(node, str) and node.lstrip()[:1] in ("{", "["):
      try:
        rest.append(json.loads(node))
      except ValueError:
        continue  # a text, which TFDS cannot parse either

"""Text embeddings beside a data set: written once, read in place of the encoder.

  OUT/<stream>/identity.json            what made them: encoder, tokenizer, length, ...
  OUT/<stream>/<shard>.arrays           one array [tokens, width], bfloat16, for each sample

They are cut to the true length of the text. The files stand beside the shards' names, one each, and
say of which shard (its digest) they are; each array says of which text. So what does not belong to
the data, or to the encoder of the config, is refused before it is trained on.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vidgen.config import differences, digest
from vidgen.errors import DataError
from vidgen.inputs.array_shards import SUFFIX, ArrayShard
from vidgen.inputs.config import EncoderSource
from vidgen.inputs.samples import NoSuchSplit, Source
from vidgen.inputs.sources import open_source
from vidgen.inputs.storage import ShardFiles

FOLDER = "embeddings"  # in a data set, unless another is named
IDENTITY = "identity.json"
STORED = "bfloat16"
REMEDY = "run `vidgen data embed` again"
SPLITS = ("train", "held_out")
KEPT_OPEN = 32  # files of one stream: a process has several, and a limit of perhaps 1,024 in all
_QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')


def text_of(caption: str, *, reads: str) -> str:
  """What an encoder reads of a caption: all, or its words in double quotes, straight or curly."""
  if reads == "caption":
    return caption
  return " ".join(quoted(caption))


def quoted(caption: str) -> list[str]:
  """What stands in double quotes, straight or curly, in order."""
  return [one or other for one, other in _QUOTED.findall(caption)]


def identity_of(
  source: EncoderSource, *, encoder: str, tokenizer: str, width: int
) -> dict[str, Any]:
  """What the numbers of embeddings hang on, by digests, wherever the encoder lies."""
  return {
    "encoder": encoder,
    "tokenizer": tokenizer,
    "length": source.length,
    "width": width,
    "reads": source.reads,
    "dtype": source.dtype,
    "stored": STORED,
  }


@dataclasses.dataclass(frozen=True)
class ShardPart:
  """A shard of a data set as embeddings see it: its name, its samples' numbers, its digest."""

  name: str
  start: int
  samples: int
  digest: str

  def path(self, folder: Path) -> Path:
    """Where its embeddings lie."""
    return folder / f"{self.name}{SUFFIX}"


def shard_parts(source: Source) -> list[ShardPart]:
  """The shards of a source; all of it as one where it does not say how they are counted.

  Raises:
    DataError: a shard whose name is no path below the data set.
  """
  shards = source.describe()
  if any(shard["samples"] is None for shard in shards):
    return [ShardPart(_plain(source.shards[0]), 0, len(source), digest(shards))]
  parts, start = [], 0
  for shard in shards:
    name, count = _plain(shard["shard"]), int(shard["samples"])
    parts.append(ShardPart(name, start, count, digest([shard["size"], shard["digest"]])))
    start += count
  return parts


def _plain(name: str) -> str:
  path = PurePosixPath(name)
  if path.is_absolute() or ".." in path.parts or not path.parts:
    raise DataError(f"shard {name!r}: not a path below the data set")
  return path.as_posix()


def data_parts(directory: str | Path) -> Iterator[tuple[str, Source]]:
  """("subset/split", source) for all that a data set holds.

  Raises:
    DataError: it holds nothing, or a shard cannot be read.
  """
  root = Path(directory)
  if not root.is_dir():
    raise DataError(f"data set {root}: no such folder")
  places = [
    place
    for place in sorted(root.glob("*/*"))
    if any(place.glob("*.tar")) or any(place.glob("*.array_record"))
  ]
  if places:
    for place in places:
      subset, split = place.parent.name, place.name
      yield f"{subset}/{split}", open_source(root, subset=subset, split=split)
    return
  yield SPLITS[0], open_source(root, subset="video", split=SPLITS[0])
  with contextlib.suppress(NoSuchSplit):
    yield SPLITS[1], open_source(root, subset="video", split=SPLITS[1])


def read_identity(folder: Path) -> dict[str, Any]:
  """What made the embeddings in a stream's folder.

  Raises:
    DataError: there are none, or the file is damaged.
  """
  path = folder / IDENTITY
  try:
    tree = json.loads(path.read_bytes())
    if not isinstance(tree, dict) or not isinstance(tree["width"], int):
      raise ValueError("not what `vidgen data embed` writes")
    return tree
  except FileNotFoundError:
    raise DataError(f"{folder}: holds no embeddings; {REMEDY}, or name their folder") from None
  except (OSError, ValueError, KeyError, RecursionError) as error:
    raise DataError(f"{path}: damaged: {type(error).__name__}: {error}; {REMEDY}") from error


def check_identity(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
  """The identity of a stream's folder, which must agree with `expected` where that says something.

  Raises:
    DataError: it differs; every difference is listed.
  """
  found = read_identity(folder)
  lines = differences({name: found.get(name) for name in expected}, dict(expected))
  if lines:
    raise DataError(
      f"{folder}: these embeddings were made otherwise (there -> wanted): {'; '.join(lines)}; "
      f"{REMEDY} into another folder, or change config.inputs.encoders"
    )
  return found


class CachedText:
  """The embeddings of one source's captions, by the number of the sample; sent to workers small.

  Raises:
    DataError: a file is missing, damaged, of other shards than there are, or of another encoder.
  """

  def __init__(self, folder: Path, source: Source, *, reads: str, identity: Mapping[str, Any]):
    self._folder, self._reads, self.width = folder, reads, int(identity["width"])
    self._parts = shard_parts(source)
    self._ends = np.array([part.start + part.samples for part in self._parts])
    self._open: dict[int, ArrayShard] = {}
    self._files = ShardFiles(KEPT_OPEN)
    for number, part in enumerate(self._parts):
      shard = self._shard(number)
      check_shard(shard, part, identity=identity)

  def __getstate__(self):
    return {**self.__dict__, "_open": {}, "_files": ShardFiles(KEPT_OPEN)}

  def _shard(self, number: int) -> ArrayShard:
    if number not in self._open:
      path = self._parts[number].path(self._folder)
      self._open[number] = ArrayShard(path, remedy=REMEDY, files=self._files)
    return self._open[number]

  def __call__(self, index: int, caption: str) -> np.ndarray:
    """The embedding, bfloat16 [tokens, width], of sample `index`, which has this caption.

    Raises:
      DataError: it is not of this caption, or damaged.
    """
    number = int(np.searchsorted(self._ends, index, side="right"))
    text = text_of(caption, reads=self._reads)
    shard = self._shard(number)
    return shard.read(index - self._parts[number].start, source=source_bytes(text))


def source_bytes(text: str) -> bytes:
  """What an embedding's hash of its source is over."""
  return text.encode("utf-8", "backslashreplace")


def check_shard(shard: ArrayShard, part: ShardPart, *, identity: Mapping[str, Any]) -> None:
  """Raises DataError where a file is of another shard, or of another encoder."""
  lines = differences(
    {name: shard.about.get(name) for name in ("data", "identity")}, about(part, identity=identity)
  )
  if lines or len(shard) != part.samples:
    found = "; ".join(lines) or f"{len(shard)} samples, where the shard has {part.samples}"
    raise DataError(f"{shard.path}: not of this shard as it is now: {found}; {REMEDY}")


def about(part: ShardPart, *, identity: Mapping[str, Any]) -> dict[str, Any]:
  """What a file of embeddings says of itself."""
  return {"data": {"shard": part.name, "digest": part.digest}, "identity": dict(identity)}

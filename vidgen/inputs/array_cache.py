"""Arrays that were made of a data set's samples once, in files that stand beside its shards.

  FOLDER/identity.json        what made them: a network by its digests, its settings
  FOLDER/<shard>.arrays       one array for each sample (`array_shards`)

Each file says of which shard (its digest) it is, and what made it. So what does not belong to the
data, or to the config, is refused before it is trained on.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vidgen.config import differences, digest
from vidgen.errors import DataError
from vidgen.inputs.array_shards import SUFFIX, ArrayShard
from vidgen.inputs.samples import NoSuchSplit, Source
from vidgen.inputs.sources import open_source
from vidgen.inputs.storage import ShardFiles
from vidgen.whole_file import remove_leftovers, whole_file, write_whole

IDENTITY = "identity.json"
SPLITS = ("train", "held_out")
KEPT_OPEN = 32  # files of one cache: a process has several, and a limit of perhaps 1,024 in all


@dataclasses.dataclass(frozen=True)
class ShardPart:
  """A shard of a data set as a cache sees it: its name, its samples' numbers, its digest."""

  name: str
  start: int
  samples: int
  digest: str

  def path(self, folder: Path) -> Path:
    """Where its arrays lie."""
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


@dataclasses.dataclass(frozen=True)
class CacheKind:
  """What a cache is called in messages, what makes it anew, and what of a config asks for it.

  `fields` are what its identity must at least say, by type.
  """

  name: str
  remedy: str
  keys: str
  fields: Mapping[str, type]


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
  """Makes the folder of a cache, and says in it what makes the arrays."""
  folder.mkdir(parents=True, exist_ok=True)
  content = json.dumps(dict(identity), indent=2, sort_keys=True) + "\n"
  write_whole(folder / IDENTITY, content.encode())


@contextlib.contextmanager
def writing(part: ShardPart, folder: Path) -> Iterator[Path]:
  """Where to write the arrays of a shard, which appear when they are whole (`whole_file`).

  What a killed writer left of them is removed; other shards may be written at the same time.
  """
  path = part.path(folder)
  path.parent.mkdir(parents=True, exist_ok=True)
  remove_leftovers(path.parent, of=path.name)
  with whole_file(path) as temporary:
    yield temporary


def read_identity(folder: Path, *, kind: CacheKind) -> dict[str, Any]:
  """What made the arrays in a folder.

  Raises:
    DataError: there are none, or the file is damaged.
  """
  path = folder / IDENTITY
  try:
    tree = json.loads(path.read_bytes())
    for name, wanted in kind.fields.items():
      if not isinstance(tree[name], wanted):
        raise ValueError(f"its {name} is no {wanted.__name__}")
    return tree
  except FileNotFoundError:
    raise DataError(
      f"{folder}: holds no {kind.name}; {kind.remedy}, or name their folder"
    ) from None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(f"{path}: damaged: {type(error).__name__}: {error}; {kind.remedy}") from error


def check_identity(folder: Path, expected: Mapping[str, Any], *, kind: CacheKind) -> dict[str, Any]:
  """The identity of a folder, which must agree with `expected` where that says something.

  Raises:
    DataError: it differs; every difference is listed.
  """
  found = read_identity(folder, kind=kind)
  lines = differences({name: found.get(name) for name in expected}, dict(expected))
  if lines:
    raise DataError(
      f"{folder}: these {kind.name} were made otherwise (there -> wanted): {'; '.join(lines)}; "
      f"{kind.remedy} into another folder, or change {kind.keys}"
    )
  return found


class ArrayCache:
  """The arrays of one source's samples, by the number of the sample; sent to workers small.

  Caches that are read side by side may share `files`.

  Raises:
    DataError: a file is missing, damaged, of other shards than there are, or made otherwise.
  """

  def __init__(
    self,
    folder: Path,
    source: Source,
    *,
    identity: Mapping[str, Any],
    kind: CacheKind,
    files: ShardFiles | None = None,
  ):
    self._folder, self._kind = folder, kind
    self._parts = shard_parts(source)
    self._ends = np.array([part.start + part.samples for part in self._parts])
    self._open: dict[int, ArrayShard] = {}
    self._files = ShardFiles(KEPT_OPEN) if files is None else files
    for number, part in enumerate(self._parts):
      check_shard(self.shard(number), part, identity=identity)

  def __getstate__(self):
    return {**self.__dict__, "_open": {}}

  def shard(self, number: int) -> ArrayShard:
    """The file of the `number`-th shard."""
    if number not in self._open:
      path = self._parts[number].path(self._folder)
      self._open[number] = ArrayShard(path, remedy=self._kind.remedy, files=self._files)
    return self._open[number]

  def place(self, index: int) -> tuple[ArrayShard, int]:
    """The file that sample `index` has its array in, and its row there."""
    number = int(np.searchsorted(self._ends, index, side="right"))
    return self.shard(number), index - self._parts[number].start


def is_there(part: ShardPart, folder: Path, *, identity: Mapping[str, Any]) -> bool:
  """Whether the file of a shard is there, whole, of the shard as it is now and so made."""
  try:
    check_shard(ArrayShard(part.path(folder)), part, identity=identity)
  except DataError:
    return False
  return True


def check_shard(shard: ArrayShard, part: ShardPart, *, identity: Mapping[str, Any]) -> None:
  """Raises DataError where a file is of another shard, or made otherwise."""
  lines = differences(
    {name: shard.about.get(name) for name in ("data", "identity")}, about(part, identity=identity)
  )
  if lines or len(shard) != part.samples:
    found = "; ".join(lines) or f"{len(shard)} samples, where the shard has {part.samples}"
    raise DataError(f"{shard.path}: not of this shard as it is now: {found}; {shard.remedy}")


def about(part: ShardPart, *, identity: Mapping[str, Any]) -> dict[str, Any]:
  """What a file says of itself."""
  return {"data": {"shard": part.name, "digest": part.digest}, "identity": dict(identity)}

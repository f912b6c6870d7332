"""What is scored: sets of clips, pictures or sounds, wherever they lie.

A set is opened from a folder of media files (found in all its folders), from a folder that
`vidgen sample` wrote, or from a data set in shards. Its items are in a fixed order and have names,
by which pairs are found: the path within the folder without its suffix, or the key of a data set.
Nothing is passed over: what is neither media nor a known companion is refused by name.
"""

import collections
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.evals import samples as sample_folders
from vidgen.evals.clips import MOST_FRAMES, ClipRule, Window
from vidgen.inputs.decode import (
  AUDIO,
  AUDIO_RATE,
  IMAGE,
  VIDEO,
  Limits,
  decode_audio,
  decode_video,
)
from vidgen.inputs.decode_image import decode_image
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Source
from vidgen.inputs.sources import open_source
from vidgen.inputs.storage import file_sha256
from vidgen.media.audio import Sound, decode_wav

KINDS = {"video": VIDEO, "image": IMAGE, "audio": AUDIO}
COMPANIONS = ("txt", "json", "jsonl", "csv", "md", "gif", "srt", "vtt", "yaml", "html")
NAMED = 8  # how many problems a message names


@dataclasses.dataclass(frozen=True)
class Part:
  """A file, or a member of a shard: what to call it, how to read it, its SHA-256 where known."""

  label: str
  read: Callable[[], bytes]
  sha256: str = ""

  def content(self) -> bytes:
    """The bytes.

    Raises:
      BadSample: they are gone, too many, or not those that were recorded.
    """
    try:
      data = self.read()
    except OSError as error:
      raise BadSample(
        "missing" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
      ) from error
    if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
      raise BadSample("not the file that was recorded (sha256)")
    return data


@dataclasses.dataclass(frozen=True)
class Item:
  """A clip (one file, or pictures in their order), a picture, or a sound."""

  name: str
  kind: str  # "video", "image", "audio"; a clip of several pictures is an "image" with parts
  parts: tuple[Part, ...]
  prompt: str | None = None
  caption: Part | None = None

  def text(self) -> str | None:
    """The prompt, or the caption that lies beside the item.

    Raises:
      BadSample: the caption cannot be read.
    """
    if self.prompt is not None or self.caption is None:
      return self.prompt
    try:
      return self.caption.content().decode().strip()
    except UnicodeDecodeError as error:
      raise BadSample(f"{self.caption.label} is not UTF-8") from error

  @property
  def label(self) -> str:
    """What messages call it."""
    return self.parts[0].label if len(self.parts) == 1 else self.name


@dataclasses.dataclass(frozen=True)
class Frames:
  """Frames of a clip or one picture, uint8 RGB [t, h, w, 3]; their rate, 0 where none is known."""

  frames: np.ndarray
  fps: float


@dataclasses.dataclass(frozen=True)
class MediaSet:
  """Items in order, the SHA-256 of all their content, and where they lie.

  formats: suffixes of the files that are read, such as "jpg, png": what pixels went through.
  """

  where: str
  items: tuple[Item, ...]
  digest: str
  formats: str = ""

  @property
  def names(self) -> tuple[str, ...]:
    """The items' names."""
    return tuple(item.name for item in self.items)

  def __len__(self) -> int:
    return len(self.items)


def open_media(
  path: str | Path, *, need: str, subset: str | None = None, split: str = "held_out"
) -> MediaSet:
  """The items of a folder that can give `need`: "video", "image" or "audio".

  Of clips, "image" gives the frames and "audio" the sound. `subset` (default: of the kind of
  `need`) and `split` choose within a data set.

  Raises:
    ConfigError: there is no such folder.
    DataError: it holds nothing of the kind, several kinds, or what cannot be told apart.
  """
  path = Path(path)
  if not path.is_dir():
    raise ConfigError(f"{path}: no such folder")
  if (path / sample_folders.FILE).is_file():
    return _of_samples(path)
  tars = any(path.rglob("*.tar")) or any(path.rglob("*.array_record"))
  if tars or (path / "dataset.json").is_file() or (path / "dataset_info.json").is_file():
    return _of_data_set(path, need=need, subset=subset or need, split=split)
  return _of_folder(path, need=need)


def _of_samples(path: Path) -> MediaSet:
  found = sample_folders.read_samples(path)
  items = []
  for record in found.records:
    read = partial(_read_plain, path / record.file)
    part = Part(record.file, read, record.sha256)
    name = record.key or record.file.removesuffix(".mp4")
    items.append(Item(name, "video", (part,), record.prompt))
  return MediaSet(str(path), tuple(items), found.digest(), "mp4")


def _read_plain(path: Path) -> bytes:
  """A file of a folder whose records name it: no link to elsewhere, and bounded."""
  if path.is_symlink():
    raise FileNotFoundError(path)
  return _read_file(path)


def _read_file(path: Path) -> bytes:
  if path.stat().st_size > Limits.max_bytes:
    raise BadSample(f"larger than {Limits.max_bytes} bytes")
  return path.read_bytes()


def _of_data_set(path: Path, *, need: str, subset: str, split: str) -> MediaSet:
  source = open_source(path, subset=subset, split=split)
  if problems := source.problems:
    raise DataError(f"{path}: {subset}/{split}: {_several([str(p) for p in problems])}")
  kind, formats = _kind_of(source, need)
  items = []
  for index in range(len(source)):
    shard, key = source.name(index)
    part = Part(f"shard {shard}, key {key!r}", partial(_member, source, index, kind))
    name = f"{shard}:{key}" if key.startswith("#") else key
    caption = Part(part.label, partial(_member, source, index, "txt"))
    items.append(Item(name, kind, (part,), caption=caption))
  shards = [{**d, "digest": _shard_digest(path / d["shard"], d)} for d in source.describe()]
  digest = cfg.digest([subset, split, shards])
  return MediaSet(f"{path}, {subset}/{split}", tuple(items), digest, formats)


def _shard_digest(path: Path, description: dict) -> str:
  return file_sha256(path) if path.is_file() else description["digest"]


def _kind_of(source: Source, need: str) -> tuple[str, str]:
  """The kind of the members to read: that of `need`, or clips where the samples have only those.

  And the suffix of the first of them that can be read, "" if none can.
  """
  for index in range(len(source)):
    try:
      sample = source[index]
    except BadSample:
      continue
    has = {kind for kind, suffixes in KINDS.items() if any(s in sample for s in suffixes)}
    kind = need if need in has or "video" not in has else "video"
    return kind, next((suffix for suffix in KINDS[kind] if suffix in sample), "")
  return need, ""


def _member(source: Source, index: int, kind: str) -> bytes:
  sample = source[index]
  found = [s for s in KINDS.get(kind, (kind,)) if s in sample]
  if not found:
    have = ", ".join(s for s in sample if not s.startswith("__"))
    raise BadSample(f"has no {kind}, only {have}")
  return sample[found[0]]


def _of_folder(path: Path, *, need: str) -> MediaSet:
  files: dict[str, list[Path]] = collections.defaultdict(list)
  for folder, folders, names in os.walk(path, onerror=_refuse_folder):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in folders:
      if (Path(folder) / name).is_symlink():
        raise DataError(f"{Path(folder, name)}: a link to a folder; name that folder itself")
    for name in sorted(names):
      if name.startswith("."):
        continue
      suffix = name.rpartition(".")[2].lower()
      kind = next((k for k, suffixes in KINDS.items() if suffix in suffixes), None)
      if kind is None and suffix not in COMPANIONS:
        raise DataError(f"{Path(folder, name)}: neither media nor a known companion of it")
      if kind is not None:
        files[kind].append(Path(folder, name))
  # Sound may lie beside clips as its own files; pictures beside clips are not to be told apart.
  wanted = ["audio", "video"] if need == "audio" else ["video", "image"]
  present = [kind for kind in wanted if files[kind]]
  if not present:
    have = ", ".join(f"{len(found)} {kind}" for kind, found in files.items() if found) or "nothing"
    raise DataError(f"{path}: holds no {need} ({have} files)")
  if need != "audio" and len(present) > 1:
    raise DataError(
      f"{path}: holds both clips ({files['video'][0].name}, ...) and pictures"
      f" ({files['image'][0].name}, ...); keep one kind in a folder"
    )
  kind = present[0]
  sums = {file: file_sha256(file) for file in files[kind]}
  if need == "video" and kind == "image":
    items = _sequences(path, files[kind], sums)
  else:
    items = [_item(path, f, kind, sums[f]) for f in files[kind]]
  items.sort(key=lambda item: item.name)
  twice = [n for n, times in collections.Counter(i.name for i in items).items() if times > 1]
  if twice:
    raise DataError(f"{path}: several files are called {twice[0]!r} but for their suffix")
  content = [[item.name, [part.sha256 for part in item.parts]] for item in items]
  formats = ", ".join(sorted({file.suffix[1:].lower() for file in files[kind]}))
  return MediaSet(str(path), tuple(items), cfg.digest(content), formats)


def _refuse_folder(error: OSError) -> None:
  """A folder that cannot be listed is not passed over, as `os.walk` would."""
  raise DataError(f"{error.filename}: {error.strerror}")


def _item(root: Path, file: Path, kind: str, sha256: str) -> Item:
  beside = file.with_suffix(".txt")
  caption = Part(beside.name, partial(_read_file, beside)) if beside.is_file() else None
  return Item(_name(root, file), kind, (_part(root, file, sha256),), caption=caption)


def _name(root: Path, file: Path) -> str:
  return file.relative_to(root).with_suffix("").as_posix()


def _part(root: Path, file: Path, sha256: str) -> Part:
  return Part(file.relative_to(root).as_posix(), partial(_read_file, file), sha256)


def _sequences(root: Path, files: Sequence[Path], sums: dict[Path, str]) -> list[Item]:
  """A clip for each folder of pictures, in the order of the numbers that end their names."""
  folders: dict[Path, list[Path]] = collections.defaultdict(list)
  for file in files:
    folders[file.parent].append(file)
  items = []
  for folder, pictures in folders.items():
    if folder == root and len(folders) > 1:
      raise DataError(f"{pictures[0]}: a picture beside folders of pictures, which are clips")
    numbers = {}
    for file in pictures:
      match = re.search(r"(\d+)$", file.stem)
      if match is None:
        raise DataError(f"{file}: a frame of a clip, but its name does not end in a number")
      if (number := int(match[1])) in numbers:
        raise DataError(f"{file}: {numbers[number].name} has the same number")
      numbers[number] = file
    order = sorted(numbers)
    steps = {b - a for a, b in zip(order, order[1:], strict=False)}
    if len(steps) > 1:
      gap = next(a for a, b in zip(order, order[1:], strict=False) if b - a > min(steps))
      raise DataError(f"{folder}: frames are missing after {numbers[gap].name}")
    name = root.name if folder == root else folder.relative_to(root).as_posix()
    parts = [_part(root, numbers[n], sums[numbers[n]]) for n in order]
    items.append(Item(name, "image", tuple(parts)))
  return items


def read_frames(item: Item, rule: ClipRule) -> Frames:
  """The frames of a clip that a rule chooses, or a picture; decodes no more than those.

  Raises:
    BadSample: they cannot be read, or the clip is too short.
    ConfigError: frames without a rate are to be resampled.
  """
  window = rule.window(item.name)
  if item.kind == "image":
    return _read_pictures(item, rule, window)
  limits = Limits() if rule.frames else Limits(max_frames=MOST_FRAMES)
  clip = decode_video(item.parts[0].content(), limits=limits, span=window)
  if window.fps or not window.rates or (window.frames and len(clip.frames) != window.frames):
    # A chosen frame may be shown twice; a file without times was decoded whole.
    chosen = window.indices(clip.times, duration=clip.duration, tick=clip.tick)
    return Frames(clip.frames[chosen], rule.fps or round(window.rates[0], 2))
  return Frames(clip.frames, round(window.rates[0], 2))


def _read_pictures(item: Item, rule: ClipRule, window: Window) -> Frames:
  if len(item.parts) == 1 and not rule.sequence_fps:
    return Frames(decode_image(item.parts[0].content()).frames, 0.0)
  if rule.fps and not rule.sequence_fps:
    raise ConfigError(f"{item.name}: frames without a rate; state it with --sequence-fps")
  fps = rule.sequence_fps or 1.0
  times = np.arange(len(item.parts)) / fps
  chosen = window.indices(times, duration=len(item.parts) / fps, tick=1e-6)
  frames = []
  for index in chosen:
    try:
      frames.append(decode_image(item.parts[index].content()).frames[0])
    except BadSample as bad:
      raise BadSample(f"{item.parts[index].label}: {bad.reason}") from bad
  if len({frame.shape for frame in frames}) > 1:
    raise BadSample("the picture size changes within the clip")
  return Frames(np.stack(frames), rule.fps or rule.sequence_fps or 0.0)


def read_sound(item: Item) -> Sound:
  """The sound of an item, of its own rate where it is a plain WAV file, else mono at 48 kHz.

  Raises:
    BadSample: it cannot be read, or has no sound.
  """
  data = item.parts[0].content()
  if data[:4] == b"RIFF":
    try:
      return decode_wav(data)
    except DataError:
      pass  # of a format that only the other decoder knows, or damaged, which it will say
  return Sound(decode_audio(data)[:, None], AUDIO_RATE)


def refuse(where: str, problems: Sequence[tuple[str, str]], *, total: int) -> None:
  """Raises DataError naming items that cannot be scored, where there are any."""
  if problems:
    named = _several([f"{label}: {problem}" for label, problem in problems])
    raise DataError(
      f"{where}: at least {len(problems)} of {total} cannot be scored: {named};"
      " mend them, or have them left out and counted with --allow-missing"
    )


def _several(lines: Sequence[str]) -> str:
  more = f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
  return "; ".join(lines[:NAMED]) + more

"""Features of a set of media: read item by item, through a frozen network, on every device."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vidgen.errors import DataError
from vidgen.evals.blocks import each_block, gathered_json, gathered_rows, share_of, together
from vidgen.evals.clips import ClipRule
from vidgen.evals.folders import Frames, MediaSet, read_frames, read_sound, refuse
from vidgen.evals.moments import Moments, gathered
from vidgen.media.audio import Sound

BLOCK = 8  # items; the same for all, so that nothing depends on who works
CLIPS = 1  # the same, of clips every frame of which is read: those may be long
FPS_TOLERANCE = 0.005  # relative; clocks of some files are coarse


@dataclasses.dataclass(frozen=True)
class Facts:
  """What was found in reading a set.

  count: items asked for; missing: those of them that could not be read. height, width, frames, fps:
  of every clip, 0 where they are not the same for all or, of fps, not known.
  """

  count: int
  missing: int
  height: int
  width: int
  frames: int
  fps: float

  @property
  def read(self) -> int:
    """Items that were read."""
    return self.count - self.missing


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of a set in the order of its items, or their moments.

  rows: tensor -> float32 [n, d]. owners: which item each row is of, int64 [n]. moments: by tensor.
  """

  facts: Facts
  rows: dict[str, np.ndarray]
  owners: np.ndarray
  moments: dict[str, Moments]


def devices_of(extractor: Any, devices: Sequence[Any] | None) -> list[Any]:
  """The extractor on each device, by default of this process; once, if it knows no devices."""
  if not hasattr(extractor, "on"):
    return [extractor]
  devices = jax.local_devices() if devices is None else devices
  return [extractor.on(device) for device in devices]


def features_of(
  media: MediaSet,
  rule: ClipRule,
  extractor: Any,
  *,
  rows: Sequence[str] = (),
  moments: Sequence[str] = (),
  each: str = "clip",
  allow_missing: bool = False,
  devices: Sequence[Any] | None = None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
  """Reads every item and keeps the `rows` and the `moments` of the tensors that are named.

  each: "clip", whose frames the network sees together; "frame", each of which gives a row; "sound".

  Raises:
    DataError: items cannot be read and `allow_missing` is not set, or clips differ in what must be
      the same; named.
  """
  kept: dict[str, list[np.ndarray]] = {name: [] for name in rows}
  owners: list[np.ndarray] = []
  sums: dict[str, Moments] = {}

  def keep(found: dict[str, np.ndarray], of_item: np.ndarray) -> None:
    owners.append(of_item)
    for name in rows:
      kept[name].append(found[name])
    for name in moments:
      sums.setdefault(name, Moments(found[name].shape[1])).add(found[name])

  facts = visit(
    media,
    rule,
    [partial(_apply, one, each=each) for one in devices_of(extractor, devices)],
    keep=lambda result: keep(*result),
    each=each,
    allow_missing=allow_missing,
    progress=progress,
  )
  here = {name: parts[0].shape[1] for name, parts in kept.items() if parts}
  here |= {name: sums[name].width for name in sums}
  width = {n: w for part in gathered_json(here) for n, w in part.items()}  # a process may have none
  whole = gathered_rows(np.concatenate([np.zeros(0, np.int64), *owners]))
  places = np.argsort(whole, kind="stable")
  merged = {
    name: gathered_rows(np.concatenate([np.zeros((0, width[name]), np.float32), *kept[name]]))
    for name in rows
  }
  return Features(
    facts,
    {name: values[places] for name, values in merged.items()},
    whole[places],
    {name: gathered(sums.get(name, Moments(width[name]))) for name in moments},
  )


def visit(
  media: MediaSet,
  rule: ClipRule,
  work: Sequence[Callable[[list[int], list[Any]], "Visited"]],
  *,
  keep: Callable[[Any], None],
  each: str,
  allow_missing: bool,
  read: Callable[[int], Any] | None = None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Facts:
  """Reads every item, has it worked on, and hands results of blocks, in order, to `keep`.

  Raises:
    DataError: as `features_of`.
  """
  shapes: list[tuple[int, ...]] = []
  problems: list[tuple[int, str]] = []

  def read_item(index: int) -> Any:
    item = media.items[index]
    return read_sound(item) if each == "sound" else read_frames(item, rule)

  whole_clips = each == "frame" and any(i.kind == "video" or len(i.parts) > 1 for i in media.items)
  size = CLIPS if whole_clips else BLOCK

  def run() -> None:
    share = share_of(len(media), size=size)
    progress(0, share)
    for block in each_block(len(media), read=read or read_item, work=work, size=size):
      problems.extend(block.problems)
      if block.result is not None:
        shapes.extend(block.result.shapes)
        problems.extend(block.result.problems)
        if block.result.kept is not None:
          keep(block.result.kept)
      progress(len(shapes) + len(problems), share)
      if problems and not allow_missing:
        break  # named below, once every process has come so far

  together(run)
  found = gathered_json([sorted(problems), sorted(shapes)])
  return _facts(media, found, allow_missing=allow_missing, each=each)


@dataclasses.dataclass(frozen=True)
class Visited:
  """Of a block: (index, frames, height, width, fps) of items, what else to keep, and problems."""

  shapes: list[tuple[Any, ...]]
  kept: Any
  problems: tuple[tuple[int, str], ...] = ()


def _apply(extractor: Any, indices: list[int], items: list[Any], *, each: str) -> Visited:
  if each == "sound":
    return _apply_to_sounds(extractor, indices, items)
  shapes = [clip_shape(i, clip) for i, clip in zip(indices, items, strict=True)]
  return Visited(shapes, _of_clips(extractor, indices, items, each))


def clip_shape(index: int, clip: Frames) -> tuple[Any, ...]:
  """What `Visited` holds of a clip."""
  return (index, *clip.frames.shape[:3], clip.fps)


def _of_clips(extractor: Any, indices: list[int], clips: list[Frames], each: str) -> Any:
  """Features of a block; clips of one shape go through the network together."""
  parts: list[dict[str, np.ndarray]] = []
  owners: list[np.ndarray] = []
  start = 0
  while start < len(clips):
    size = clips[start].frames.shape if each == "clip" else clips[start].frames.shape[1:]
    stop = start + 1
    while stop < len(clips) and clips[stop].frames.shape[-len(size) :] == size:
      stop += 1
    group = [clip.frames for clip in clips[start:stop]]
    media = np.stack(group) if each == "clip" else np.concatenate(group)
    parts.append({name: np.asarray(value) for name, value in extractor(media).items()})
    times = [1 if each == "clip" else len(frames) for frames in group]
    owners.append(np.repeat(np.asarray(indices[start:stop], np.int64), times))
    start = stop
  return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}, np.concatenate(owners)


def _apply_to_sounds(extractor: Any, indices: list[int], sounds: list[Sound]) -> Visited:
  """Features of sounds, one or more rows each; those that the network refuses are problems."""
  parts, owners, problems = [], [], []
  for index, sound in zip(indices, sounds, strict=True):
    try:
      parts.append(extractor([sound]))
    except DataError as error:
      problems.append((index, str(error).removeprefix("sound 0: ")))
    else:
      count = len(next(iter(parts[-1].values())))
      owners.append(np.full(count, index, np.int64))
  shapes = [(i, 0, 0, 0, 0.0) for i in indices if i not in dict(problems)]
  if not parts:
    return Visited([], None, tuple(problems))
  rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  return Visited(shapes, (rows, np.concatenate(owners)), tuple(problems))


def _facts(media: MediaSet, found: list[Any], *, allow_missing: bool, each: str) -> Facts:
  problems = sorted((index, reason) for part, _ in found for index, reason in part)
  if not allow_missing:
    named = [(media.items[index].label, reason) for index, reason in problems]
    refuse(media.where, named, total=len(media))
  shapes = sorted(tuple(shape) for _, part in found for shape in part)
  if not shapes:
    raise DataError(f"{media.where}: none of {len(media)} items can be read")
  return _facts_of(media, shapes, missing=len(problems), clips=each == "clip")


def _facts_of(
  media: MediaSet, shapes: Sequence[Sequence[Any]], *, missing: int, clips: bool
) -> Facts:
  first = shapes[0]
  for shape in shapes:
    one, other = media.items[first[0]].label, media.items[shape[0]].label
    if clips and shape[1] != first[1]:
      raise DataError(
        f"{media.where}: {one} has {first[1]} frames, {other} {shape[1]}; name --frames"
      )
    if abs(shape[4] - first[4]) > FPS_TOLERANCE * max(shape[4], first[4]):
      raise DataError(
        f"{media.where}: mixed rates, {one} has {first[4]:g} frames a second, {other}"
        f" {shape[4]:g}; resample with --fps"
      )
  alike = [{shape[k] for shape in shapes} for k in (1, 2, 3)]
  frames, height, width = (next(iter(a)) if len(a) == 1 else 0 for a in alike)
  return Facts(len(shapes) + missing, missing, height, width, frames, first[4])


def same_clips(generated: Facts, real: Facts, *, clips: bool) -> None:
  """Refuses two sets whose clips have another length or rate.

  Raises:
    DataError: both are said.
  """
  if clips and generated.frames != real.frames:
    raise DataError(
      f"samples have {generated.frames} frames, the reference {real.frames}; name --frames"
    )
  if abs(generated.fps - real.fps) > FPS_TOLERANCE * max(generated.fps, real.fps):
    rates = [f"{fps:g} frames a second" if fps else "no known rate" for fps in
             (generated.fps, real.fps)]  # fmt: skip
    raise DataError(
      f"samples have {rates[0]}, the reference {rates[1]}; resample with --fps, and state"
      " the rate of folders of pictures with --sequence-fps"
    )

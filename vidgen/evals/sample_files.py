"""The files of one sample: its latents with a note of their origin, and its video.

In a folder of samples, for sample number i of five digits,

  latents/<i>.npy    float32 [t, h, w, c]
  latents/<i>.json   "origin" (what they follow from), "sha256" of the .npy, "frames" (of the video,
                     in pixels), "autoencoder" (what decodes them, by digests; null: the stage), and
                     of a cascade's sample "record", once its video is whole
  <i>.mp4, <i>.gif   the video
"""

import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vidgen import config as cfg
from vidgen.errors import ConfigError, NonFiniteError
from vidgen.evals.samples import FILE, SampleOrigin, SampleRecord, write_records
from vidgen.inputs.storage import file_sha256
from vidgen.media.gif import encode_gif
from vidgen.media.pixels import to_rgb
from vidgen.media.sheet import contact_sheet
from vidgen.media.video import to_uint8, write_mp4
from vidgen.whole_file import remove_leftovers, whole_file, write_whole

CRF = 12  # H.264 quality of a sample: few pixels, to be looked at and to be scored
PREVIEW = 256  # pixels: the longest side of a frame that is kept for the GIF and the sheet
ON_SHEET, FRAMES_ON_SHEET = 32, 16  # samples, and frames of each

Piece = Float[np.ndarray, "t h w 3"] | UInt8[np.ndarray, "t h w 3"]


@dataclasses.dataclass(frozen=True)
class VideoFile:
  """A video as written, and its frames, those of large ones reduced by a whole factor."""

  file: str
  sha256: str
  frames: int
  height: int
  width: int
  preview: UInt8[np.ndarray, "t h w 3"]


def prepare(directory: Path) -> None:
  """Makes a folder of samples, or what is left of one, ready to be filled.

  Its records go: they are complete again when the run is.
  """
  (directory / "latents").mkdir(parents=True, exist_ok=True)
  (directory / FILE).unlink(missing_ok=True)
  for folder in (directory, directory / "latents"):
    remove_leftovers(folder)


class SampleFolder:
  """A folder of samples while it fills: videos at once, the sheet and the records at the end.

  What is held of a sample is its record, and of the first `ON_SHEET` the frames of the sheet.
  """

  def __init__(self, directory: Path):
    self.directory = directory
    self.records: list[SampleRecord] = []
    self._sheet: list[np.ndarray] = []

  def add(
    self, origin: SampleOrigin, pieces: Iterable[Piece], *, key: str | None, cut: bool, latents: str
  ) -> SampleRecord:
    """Writes the video of the next sample, as `write_video`, and returns its record."""
    video = write_video(self.directory, origin.index, pieces, fps=origin.fps)
    record = record_of(origin, video, key=key, cut=cut, latents=latents)
    self._take(record, lambda: video.preview)
    return record

  def keep(self, record: SampleRecord, pieces: Iterable[Piece]) -> None:
    """Takes as the next sample one whose files are there; `pieces` are those of its video."""
    self._take(record, lambda: np.concatenate([_reduced(to_uint8(piece)) for piece in pieces]))

  def _take(self, record: SampleRecord, preview: Callable[[], np.ndarray]) -> None:
    self.records.append(record)
    if len(self._sheet) < ON_SHEET:
      frames = preview()
      # Those that the sheet would choose among all.
      shown = np.linspace(0, len(frames) - 1, min(len(frames), FRAMES_ON_SHEET)).round()
      self._sheet.append(frames[shown.astype(int)])

  def finish(self) -> None:
    """Writes the sheet, then the records."""
    captions = [record.prompt for record in self.records[: len(self._sheet)]]
    png = contact_sheet(np.stack(self._sheet), captions=captions, across=2, columns=FRAMES_ON_SHEET)
    write_whole(self.directory / "sheet.png", png)
    write_records(self.directory, self.records)


def record_of(
  origin: SampleOrigin, video: VideoFile, *, key: str | None, cut: bool, latents: str
) -> SampleRecord:
  """The record of a sample whose files are written; `latents` is their SHA-256."""
  return SampleRecord(
    **{f.name: getattr(origin, f.name) for f in dataclasses.fields(origin)},
    key=key,
    cut=cut,
    file=video.file,
    sha256=video.sha256,
    latents_sha256=latents,
    frames=video.frames,
    height=video.height,
    width=video.width,
  )


def latents_path(directory: Path, index: int) -> Path:
  """Where the latents of sample `index` lie in a folder of samples."""
  return directory / "latents" / f"{index:05d}.npy"


def finished_latents(directory: Path, origin: SampleOrigin) -> str | None:
  """The SHA-256 of the latents of `origin` if they are there and whole."""
  path = latents_path(directory, origin.index)
  try:
    note = json.loads(path.with_suffix(".json").read_bytes())
    if note["origin"] == json.loads(cfg.canonical_json(origin)):
      if file_sha256(path) == note["sha256"]:
        return note["sha256"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    pass  # absent, or cut short by a kill: made again
  return None


def write_latents(
  directory: Path,
  origin: SampleOrigin,
  array: Float[np.ndarray, "t h w c"],
  *,
  frames: int,
  autoencoder: Mapping[str, Any] | None = None,
) -> str:
  """Writes the latents of a sample, then the note beside them; returns their SHA-256.

  Raises:
    NonFiniteError: they hold a value that is not a number; nothing is written.
  """
  if not all(np.isfinite(frame).all() for frame in array):
    raise NonFiniteError(f"sample {origin.index}: its latents hold values that are not finite")
  file = io.BytesIO()
  np.save(file, np.asarray(array, np.float32), allow_pickle=False)
  content = file.getvalue()
  sha256 = hashlib.sha256(content).hexdigest()
  path = latents_path(directory, origin.index)
  path.with_suffix(".json").unlink(missing_ok=True)  # never the note of other latents
  write_whole(path, content)
  note = {"origin": origin, "sha256": sha256, "frames": frames, "autoencoder": autoencoder}
  write_whole(path.with_suffix(".json"), cfg.canonical_json(note).encode())
  return sha256


def keep_record(directory: Path, record: SampleRecord) -> None:
  """Puts the record of a sample whose files are all written into the note beside its latents."""
  path = latents_path(directory, record.index).with_suffix(".json")
  note = json.loads(path.read_bytes()) | {"record": record}
  write_whole(path, cfg.canonical_json(note).encode())


def finished_record(directory: Path, origin: SampleOrigin) -> SampleRecord | None:
  """What `keep_record` left of the sample of `origin`, if its files are there and whole."""
  path = latents_path(directory, origin.index)
  try:
    tree = json.loads(path.with_suffix(".json").read_bytes())["record"]
    record = cfg.build(SampleRecord, tree, path=str(path))
    video = directory / f"{origin.index:05d}.mp4"
    same = [getattr(record, f.name) == getattr(origin, f.name) for f in dataclasses.fields(origin)]
    whole = (
      all(same)
      and record.file == video.name
      and video.with_suffix(".gif").is_file()
      and record.latents_sha256 == finished_latents(directory, origin)
      and record.sha256 == file_sha256(video)
    )
    return record if whole else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
    return None  # as in `finished_latents`


def read_latents(directory: Path, index: int) -> Float[np.ndarray, "t h w c"]:
  """The latents of sample `index`, left on the disk until they are used."""
  return np.load(latents_path(directory, index), mmap_mode="r", allow_pickle=False)


def write_video(
  directory: Path, index: int, pieces: Iterable[Piece], *, fps: float, crf: int | None = CRF
) -> VideoFile:
  """Writes the MP4 and the GIF of sample `index` from pieces of its video, one held at a time.

  `crf`: as of `write_mp4`; a video of odd sides is always stored without loss, as none else can be.

  Raises:
    NonFiniteError: a piece holds a value that is not a number; no file is left.
  """
  kept: list[np.ndarray] = []
  sizes: list[tuple[int, ...]] = []

  def shown() -> Iterator[np.ndarray]:
    for piece in pieces:
      if piece.dtype != np.uint8 and not np.isfinite(piece).all():
        raise NonFiniteError(f"sample {index}: its video holds values that are not finite")
      sizes.append(piece.shape)
      piece = to_uint8(piece)
      kept.append(_reduced(piece))
      yield piece

  path = directory / f"{index:05d}.mp4"
  frames = shown()
  first = next(frames, np.zeros((0, 0, 0, 3), np.uint8))
  if first.shape[1] % 2 or first.shape[2] % 2:
    crf = None
  with whole_file(path) as temporary:
    write_mp4(temporary, itertools.chain([first], frames), fps=fps, crf=crf)
    sha256 = file_sha256(temporary)
  preview = np.concatenate(kept)
  write_whole(path.with_suffix(".gif"), encode_gif(preview, fps=fps))
  return VideoFile(path.name, sha256, len(preview), sizes[0][1], sizes[0][2], preview)


def _reduced(piece: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "t y x 3"]:
  """Frames whose longer side exceeds `PREVIEW` pixels as means of blocks, the rest cut off."""
  t, h, w, c = piece.shape
  factor = -(-max(h, w) // PREVIEW)
  if factor == 1:
    return to_rgb(piece)
  rows, columns = h // factor, w // factor
  blocks = piece[:, : rows * factor, : columns * factor].reshape(
    t, rows, factor, columns, factor, c
  )
  return to_rgb(np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8))

"""A folder of samples: the record of each in `samples.jsonl`, its video beside it.

`samples.jsonl` is written last and at once, so a folder that has it is complete. Records are data
of unknown origin when they are read: file names in them are checked before they are opened.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.inputs.decode import Limits, decode_video
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.storage import file_sha256
from vidgen.systems import SampleSettings
from vidgen.whole_file import write_whole

FILE = "samples.jsonl"
QUANTISATION = "uint8 RGB decoded from the MP4 file, colour interpolated at every pixel"


@dataclasses.dataclass(frozen=True)
class SampleOrigin:
  """All that the latents of a sample follow from.

  `config_digest` is of the checkpoint's config, `params_digest` of the parameters that `weights`
  ("ema" or "params") names, at `step`. `rewrite` is the prompt as it was rewritten, None if it was
  not; `text` what the model read of either, behind its prefix; "" where that is the prompt itself.
  `source` is the SHA-256 of the video that was upsampled or reconstructed, in a cascade of the
  latents of the clip before, "" of a sample made from text alone. An original of the data set has
  the weights "none", and the digest of the data for that of parameters.
  """

  index: int
  prompt: str
  seed: int
  step: int
  weights: str
  config_digest: str
  params_digest: str
  settings: SampleSettings
  fps: float
  rewrite: str | None = None
  text: str = ""
  source: str = ""

  @property
  def read(self) -> str:
    """What the model read."""
    return self.text or self.prompt


@dataclasses.dataclass(frozen=True)
class SampleRecord:
  """A line of `samples.jsonl`: the origin, and the file with its SHA-256.

  `key` is that of the example in the data set, where the prompts had one. `cut`: the text was
  longer than the model reads.
  """

  index: int
  key: str | None
  prompt: str
  cut: bool
  seed: int
  step: int
  weights: str
  config_digest: str
  params_digest: str
  settings: SampleSettings
  file: str
  sha256: str
  latents_sha256: str
  frames: int
  height: int
  width: int
  fps: float
  rewrite: str | None = None
  text: str = ""
  source: str = ""


@dataclasses.dataclass(frozen=True)
class Video:
  """A sample as read back: uint8 RGB frames, or None and the reason why not."""

  record: SampleRecord
  frames: UInt8[np.ndarray, "t h w 3"] | None
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class SampleSet:
  """The samples of a folder that are to be scored.

  With `allow_missing`, samples that cannot be read are left to the metric, which must count them;
  without it, they are refused.
  """

  directory: Path
  records: tuple[SampleRecord, ...]
  allow_missing: bool = False

  def digest(self) -> str:
    """SHA-256 over the prompts, the keys and the contents of the videos."""
    return cfg.digest([[r.index, r.key, r.prompt, r.sha256] for r in self.records])

  def videos(self) -> Iterator[Video]:
    """Every sample, in order, read from its file.

    Raises:
      DataError: without `allow_missing`, and samples are missing or changed since they were
        recorded (found before the first is yielded), or unreadable; the message names them.
    """
    problems = [(r, problem) for r in self.records if (problem := self._file_problem(r))]
    self._refuse(problems)
    broken = {record.index: problem for record, problem in problems}
    for record in self.records:
      if record.index in broken:
        yield Video(record, None, broken[record.index])
        continue
      video = self._read(record)
      if video.frames is None:
        self._refuse([(record, video.problem)])
      yield video

  def _refuse(self, problems: Sequence[tuple[SampleRecord, str]]) -> None:
    if problems and not self.allow_missing:
      named = "; ".join(f"{record.file}: {problem}" for record, problem in problems[:8])
      more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
      raise DataError(
        f"{self.directory}: {len(problems)} of {len(self.records)} samples cannot be scored: "
        f"{named}{more}; sample again, or count them as wrong with --allow-missing"
      )

  def _file_problem(self, record: SampleRecord) -> str:
    path = self.directory / record.file
    if path.is_symlink() or not path.is_file():
      return "missing"
    if path.stat().st_size > Limits().max_bytes:
      return f"larger than {Limits().max_bytes} bytes"
    return "" if file_sha256(path) == record.sha256 else "not the file that was recorded (sha256)"

  def _read(self, record: SampleRecord) -> Video:
    try:
      # One frame more than recorded shows that the file is another; the rest need no memory.
      limits = Limits(max_frames=min(max(record.frames, 0) + 1, Limits.max_frames))
      clip = decode_video((self.directory / record.file).read_bytes(), limits=limits)
    except BadSample as error:
      return Video(record, None, str(error))
    count, height, width, _ = clip.frames.shape
    rate = count / clip.duration if clip.duration > 0 else 0.0
    found = (count, height, width, round(rate, 3))
    wanted = (record.frames, record.height, record.width, round(record.fps, 3))
    if found != wanted:
      names = "frames, height, width, fps"
      return Video(record, None, f"{names} are {found}, recorded were {wanted}")
    return Video(record, clip.frames)


def read_samples(directory: str | Path, *, allow_missing: bool = False) -> SampleSet:
  """The samples of a folder that `vidgen sample` wrote; videos are read later.

  Raises:
    DataError: no records, a damaged line, a sample recorded twice, a file name that is no plain
      name, or samples of several sizes, rates, checkpoints, seeds or settings.
  """
  directory = Path(directory)
  path = directory / FILE
  if not path.is_file():
    raise DataError(f"{path}: missing; run `vidgen sample` to its end")
  records = []
  for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
    try:
      records.append(cfg.build(SampleRecord, json.loads(line), path=f"{path}, line {number}"))
    except ConfigError as error:
      raise DataError(str(error)) from error
    except (ValueError, RecursionError) as error:
      raise DataError(f"{path}, line {number}: {error}") from error
  if not records:
    raise DataError(f"{path}: holds no sample")
  for record in records:
    if not re.fullmatch(r"\d{5,}\.mp4", record.file):
      raise DataError(f"{path}: file {record.file!r} of sample {record.index} is not NUMBER.mp4")
  for field in ("index", "file", "key"):
    _refuse_repeated(path, field, [getattr(r, field) for r in records])
  for field in ("frames", "height", "width", "fps", "seed", "step", "weights", "config_digest",
                "params_digest", "settings"):  # fmt: skip
    if len(values := {getattr(r, field) for r in records}) > 1:
      raise DataError(f"{path}: samples differ in {field}: {sorted(values, key=str)[:4]}")
  return SampleSet(directory, tuple(records), allow_missing)


def _refuse_repeated(path: Path, field: str, values: Sequence[Any]) -> None:
  times = collections.Counter(value for value in values if value is not None)
  if repeated := sorted(value for value, count in times.items() if count > 1):
    raise DataError(f"{path}: {field} {repeated[0]!r} is recorded more than once")


def write_records(directory: Path, records: Sequence[SampleRecord]) -> None:
  """Writes `samples.jsonl`, so that it is either absent or whole."""
  lines = "".join(f"{cfg.canonical_json(record)}\n" for record in records)
  write_whole(directory / FILE, lines.encode())

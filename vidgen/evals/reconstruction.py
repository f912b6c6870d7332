"""From held-out clips to a folder of them and a folder of what an autoencoder makes of them.

Both hold samples as `generation` leaves them, but lossless and without latents: what is scored is
what the network was given and what it made, in bytes. A sample has the same key in both, and in

  prompts.jsonl   the caption of each, and the attributes that its json names, where it does
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vidgen.config import canonical_json
from vidgen.errors import ConfigError, DataError
from vidgen.evals import sample_files as files
from vidgen.evals.generation import WHOLE
from vidgen.evals.pairs import EXACT_DB
from vidgen.evals.pixels import frame_errors, psnr_of_errors
from vidgen.evals.samples import SampleOrigin, write_records
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.decode import Limits
from vidgen.inputs.loader import still_frames
from vidgen.inputs.order import shuffled
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample, Source, caption_of
from vidgen.inputs.transforms import to_unit_range
from vidgen.media.video import to_uint8
from vidgen.systems.movie_gen.decoding import stream_decode, stream_encode, streams
from vidgen.train.trained import Trained
from vidgen.whole_file import write_whole

ORIGINALS, RECONSTRUCTIONS, PROMPTS = "originals", "reconstructions", "prompts.jsonl"


@dataclasses.dataclass(frozen=True)
class Original:
  """A clip of a data set as a bucket shows it: cut in the middle of time and of the picture."""

  key: str
  caption: str
  attributes: Any
  frames: UInt8[np.ndarray, "t h w 3"]


@dataclasses.dataclass(frozen=True)
class Reconstructed:
  """How many clips were reconstructed, their mean PSNR in dB, and the samples that were left out.

  PSNR is that of bytes, as `vidgen eval` has it: mean over frames, then over clips.
  """

  count: int
  psnr: float
  left_out: Sequence[BadSample]


class Originals:
  """The first `count` clips of a source (None: all) that a bucket can show, in their order.

  With `seed`, in an order drawn by it. What is damaged or too short is left out, and `left_out`.
  """

  def __init__(
    self,
    source: Source,
    bucket: Bucket,
    *,
    limits: Limits,
    count: int | None = None,
    seed: int | None = None,
  ):
    self._source, self._bucket, self._count, self._seed = source, bucket, count, seed
    self._config = InputConfig(buckets=(bucket,), temporal_crop="center", limits=limits)
    self.left_out: list[BadSample] = []

  def __len__(self) -> int:
    """At most so many."""
    total = len(self._source)
    return total if self._count is None else min(self._count, total)

  def __iter__(self) -> Iterator[Original]:
    self.left_out = list(self._source.problems)
    order, seen = np.arange(len(self._source), dtype=np.int64), set()
    if self._seed is not None:
      order = shuffled(self._seed, order, length=len(order))
    for index in order.tolist():
      if len(seen) == len(self):
        return
      shard, key = self._source.name(index)
      try:
        sample = self._source[index]
        shard, key = sample["__shard__"], sample["__key__"]
        original = self._cut(sample, f"{shard}:{key}" if key in seen else key)
      except BadSample as bad:
        bad.shard, bad.key = shard, key
        self.left_out.append(bad.fresh())
        continue
      seen.add(original.key)
      yield original

  def _cut(self, sample: Sample, key: str) -> Original:
    frames = still_frames(sample, self._bucket, config=self._config)
    return Original(key, caption_of(sample), _attributes(sample), frames)


def _attributes(sample: Sample) -> Any:
  try:
    found = json.loads(sample.get("json", b"{}")).get("attributes")
    canonical_json(found)  # what could not be written
    return found if isinstance(found, dict) else None
  except (ValueError, AttributeError, RecursionError) as error:
    raise BadSample(f"its json is damaged: {error}") from error


class Reconstructor:
  """A trained autoencoder: bytes to what it makes of them through the posterior's mean.

  Raises:
    ConfigError: the run is of no autoencoder.
  """

  def __init__(self, trained: Trained):
    self._stage: Any = trained.stage
    if not hasattr(self._stage, "encode"):
      raise ConfigError(f"{trained.experiment.stage.name} is no autoencoder")
    self._trained = trained
    self._encode, self._decode = jax.jit(self._stage.encode), jax.jit(self._stage.decode)
    self._decode_image = jax.jit(self._stage.decode_image)

  def check(self, bucket: Bucket) -> None:
    """Raises ConfigError where clips of a bucket's size do not fit the network."""
    stride = self._stage.spatial_stride
    if bucket.height % stride or bucket.width % stride:
      raise ConfigError(
        f"{bucket.height} x {bucket.width} pixels: the autoencoder takes multiples of {stride}"
      )

  def __call__(self, video: UInt8[np.ndarray, "t h w 3"]) -> Iterator[np.ndarray]:
    """Float pieces [t, h, w, 3] in [-1, 1], in order; of a large clip one at a time is held."""
    params, frames = self._trained.params, len(video)
    with self._trained.mesh_context():
      if frames > 1 and 4 * video.size > WHOLE and streams(self._stage):
        network, own = self._stage.network, params["autoencoder"]
        latents = np.concatenate([*stream_encode(network, own, _Scaled(video))], axis=1)
        for piece in stream_decode(network, own, latents, frames=frames):
          yield np.clip(piece[0], -1, 1)
        return
      decode = self._decode_image if frames == 1 else self._decode
      made = decode(params, self._encode(params, to_unit_range(video[None])))
      yield np.asarray(made, np.float32)[0, :frames]


class _Scaled:
  """Bytes [t h w 3] as a batch of one clip in [-1, 1], those of a slice when it is asked for."""

  def __init__(self, video: np.ndarray):
    self.shape, self._video = (1, *video.shape), video[None]

  def __getitem__(self, index: Any) -> np.ndarray:
    return to_unit_range(self._video[index])


def reconstruct(
  directory: Path,
  *,
  originals: Originals,
  reconstructor: Reconstructor,
  of: SampleOrigin,
  made: SampleOrigin,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reconstructed:
  """Writes the originals, the reconstructions and their prompts into `directory`.

  `of` and `made` are the origin of every sample in them, but for its index, text and source.

  Raises:
    ConfigError: a clip is too large to be read back.
    DataError: there is no clip that can be used.
    NonFiniteError: the network made a value that is not a number; the sample is named.
  """
  folders = [directory / ORIGINALS, directory / RECONSTRUCTIONS]
  for folder in folders:
    files.prepare(folder)
  records: list[list[Any]] = [[], []]
  prompts: list[str] = []
  ratios: list[float] = []
  progress(0, len(originals))
  for index, original in enumerate(originals):
    errors: list[float] = []

    def compared(frames: np.ndarray = original.frames, found: list[float] = errors):
      for piece in reconstructor(frames):
        yield piece
        found.extend(frame_errors(to_uint8(piece), frames[len(found) : len(found) + len(piece)]))

    source, pieces = "", [iter((original.frames,)), compared()]
    for folder, origin, kept, video in zip(folders, (of, made), records, pieces, strict=True):
      origin = dataclasses.replace(origin, index=index, prompt=original.caption, source=source)
      file = files.write_video(folder, index, video, fps=origin.fps, crf=None)
      if (folder / file.file).stat().st_size > Limits.max_bytes:
        raise ConfigError(
          f"{original.key!r} has more than {Limits.max_bytes} bytes without loss, and could not be "
          "read back: ask for fewer frames, or smaller ones"
        )
      kept.append(files.record_of(origin, file, key=original.key, cut=False, latents=""))
      source = file.sha256
    line = {"key": original.key, "prompt": original.caption, "attributes": original.attributes}
    prompts.append(canonical_json(line) + "\n")
    ratios.append(psnr_of_errors(errors, peak=255, exact="cap", cap=EXACT_DB))
    progress(len(ratios), len(originals))
  if not ratios:
    reason = f"; the last: {originals.left_out[-1]}" if originals.left_out else ""
    raise DataError(f"none of {len(originals.left_out)} clips can be used{reason}")
  write_whole(directory / PROMPTS, "".join(prompts).encode())
  for folder, kept in zip(folders, records, strict=True):
    write_records(folder, kept)
  return Reconstructed(len(ratios), math.fsum(ratios) / len(ratios), tuple(originals.left_out))

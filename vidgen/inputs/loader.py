"""One batch: read, decode, crop, tokenise, with a memory of what was decoded.

A clip that is too short for the bucket that drew it, but not for every bucket of its subset, is no
bad sample: another is drawn. A bucket that chooses its clips beforehand (`choice`) meets none.
"""

import threading
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vidgen.errors import DataError
from vidgen.inputs import packing, transforms
from vidgen.inputs.choice import Choice
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.decode import (
  IMAGE,
  VIDEO,
  Clip,
  Limits,
  Span,
  TooShort,
  decode_video,
)
from vidgen.inputs.decode_image import decode_image
from vidgen.inputs.degradations import degrade
from vidgen.inputs.latents import CachedLatents
from vidgen.inputs.order import random_bits, uniforms
from vidgen.inputs.prefix import bucket_prefix
from vidgen.inputs.quarantine import BadSample, Quarantine
from vidgen.inputs.samples import Sample, Source
from vidgen.inputs.sources import text_reader
from vidgen.inputs.streams import Streams
from vidgen.inputs.text import encode_padded, make_tokenizer, token_mask
from vidgen.inputs.workers import InWork

REDRAWS = 64  # bad samples in a row after which no further replacement is drawn
SHORT_REDRAWS = 4096  # likewise, clips that are too short for the bucket
STILL_TIME = {"center": 0.5, "start": 0.0}  # where a clip is cut that is not cut at random
NOTE_BYTES = 1024  # of memory to know of one sample that it cannot be used


class Plan(NamedTuple):
  """What one batch takes: positions of the bucket's data order and the samples there, int64 [b].

  `images`, int64 [b, images], are likewise those of the order of its images, where it has any.
  """

  bucket: str
  positions: np.ndarray
  indices: np.ndarray
  images: np.ndarray | None = None


class Taken(NamedTuple):
  """Samples as they enter a batch: frames, uint8 [b, t, h, w, 3], or latents; texts; fps [b]."""

  frames: np.ndarray
  texts: Mapping[str, np.ndarray]
  fps: np.ndarray


class Example(NamedTuple):
  """The part of a sample that no random number touches.

  `frames` is what enters the batch, uint8 [t, h, w, 3], where the clip leaves nothing to choose, or
  its latents [t, h, w, c] from a cache; else it is cut from `clip`. `streams` is what text encoders
  read, or made, of the caption.
  """

  frames: np.ndarray | None
  clip: Clip | None
  tokens: np.ndarray
  streams: Mapping[str, np.ndarray]
  fps: float

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays."""
    frames = self.clip.frames if self.clip is not None else self.frames
    text = self.tokens.nbytes + sum(array.nbytes for array in self.streams.values())
    return text + (frames.nbytes if frames is not None else 0)


def bucket_seed(seed: int, bucket: str) -> int:
  """64 bits for one bucket, so that buckets of one subset do not go in step."""
  sequence = np.random.SeedSequence([seed, zlib.crc32(bucket.encode())])
  return int(sequence.generate_state(1, np.uint64)[0])


class Loader:
  """Callable: a `Plan` to a batch. Threads share it; each worker process has a copy."""

  def __init__(
    self,
    config: InputConfig,
    *,
    sources: Mapping[str, Source],
    quarantine: Quarantine,
    seed: int,
    streams: Streams,
    in_work: InWork | None = None,
    latents: Mapping[str, CachedLatents] | None = None,
    choices: Mapping[str, Choice] | None = None,
  ):
    """With `latents` of every bucket, they are read in place of clips.

    `choices`, by subset, say what is drawn in place of a bad sample, and how long samples last.
    """
    choices = choices or {}
    self._chosen = {name: n for one in choices.values() for name, n in one.chosen.items()}
    spread = {bucket.subset for bucket in config.buckets if bucket.rate == "spread"}
    self._seconds = {name: one.seconds for name, one in choices.items() if name in spread}
    self._in_work = in_work
    self._latents = dict(latents or {})
    self._streams = streams
    # streams know the buckets of the config alone
    whose = {packing.image_bucket(bucket).name: bucket.name for bucket in config.buckets}
    self._texts = {
      name: streams.of(source, bucket=whose.get(name, name)) for name, source in sources.items()
    }
    self._config = config
    self._sources = dict(sources)
    self._quarantine = quarantine
    self._seed = seed
    self._reset()

  def _reset(self) -> None:
    buckets = packing.with_image_buckets(self._config).buckets
    self._buckets = {bucket.name: bucket for bucket in buckets}
    self._tokenizer = make_tokenizer(self._config.tokenizer)
    self._cache: dict[tuple[str, int], Example | BadSample] = {}
    self._cached = 0
    self._lock = threading.Lock()

  def __getstate__(self):
    made = ("_buckets", "_tokenizer", "_cache", "_cached", "_lock")  # by _reset
    return {name: value for name, value in self.__dict__.items() if name not in made}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __call__(self, plan: Plan) -> dict[str, np.ndarray]:
    """The batch: video [b, t, h, w, 3], text and text_mask [b, l], text streams, fps [b].

    With cached latents, those [b, t, h, w, c] in place of the video.
    With `degradation` also low [b, t, h / factor, w / factor, 3], and artifacts [b].
    In a packed bucket texts are [b, k, l], and there are segments [b, t] (`inputs.packing`).

    Raises:
      DataError: `REDRAWS` bad samples in a row, `SHORT_REDRAWS` clips too short for the bucket, or
        a failure that is not the sample's; all named.
    """
    bucket, config = self._buckets[plan.bucket], self._config
    frames, texts, fps = self._take(bucket, plan.positions, plan.indices)
    more: dict[str, np.ndarray] = {}
    if bucket.packed:
      images = None
      if plan.images is not None:
        positions = packing.image_positions(plan.positions, images=bucket.images)
        kind = self._buckets[packing.image_bucket(bucket).name]
        images = self._take(kind, positions.ravel(), plan.images.ravel())
        frames = packing.join_frames(frames, images.frames)
      behind = None if images is None else images.texts
      texts = packing.join_texts(texts, behind, slots=bucket.slots)
      more["segments"] = packing.segments(len(frames), bucket=bucket)
    if self._in_work is not None:
      self._in_work.note("", "")
    batch = {**self._pictures(frames), **texts, **more, "fps": fps}
    if config.degradation is not None:
      seed, positions = bucket_seed(self._seed, bucket.name), plan.positions.tolist()
      low = degrade(frames, config.degradation, seed=seed, positions=positions)
      batch |= {"low": transforms.to_unit_range(low.video), "artifacts": low.artifacts}
    return batch

  def _take(self, bucket: Bucket, positions: np.ndarray, indices: np.ndarray) -> Taken:
    """The samples `indices` at these positions of a bucket's order, int64 [b]."""
    config = self._config
    seed = bucket_seed(self._seed, bucket.name)
    draws = uniforms(seed, positions, draws=transforms.DRAWS)
    frames, tokens, streams, rates = [], [], [], []
    for position, index, crop in zip(
      positions.tolist(), indices.tolist(), self._crops(draws).tolist(), strict=True
    ):
      picture, example = self._draw(bucket, seed=seed, position=position, index=index, crop=crop)
      frames.append(picture)
      tokens.append(example.tokens)
      streams.append(example.streams)
      rates.append(example.fps)
    video, tokens = np.stack(frames), np.stack(tokens)
    mirrored = draws[:, transforms.FLIP] < config.flip
    if mirrored.any():
      video[mirrored] = video[mirrored, :, :, ::-1]
    mask = token_mask(tokens, end=self._tokenizer.end)
    dropped = draws[:, transforms.DROP] < config.caption_dropout
    transforms.drop_captions(
      tokens, mask, dropped, end=self._tokenizer.end, pad=self._tokenizer.pad
    )
    made = self._streams.collate(streams, dropped=dropped)
    texts = {"text": tokens, "text_mask": mask, **made}
    return Taken(video, texts, np.asarray(rates, np.float32))

  def _pictures(self, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Frames or cached latents as they enter a batch."""
    if self._latents:
      return {"latents": frames.astype(np.float32)}
    return {"video": transforms.to_unit_range(frames)}

  def _crops(self, draws: np.ndarray) -> np.ndarray:
    """Where to cut, as parts in [0, 1] of the slack in time, row and column; [b, 3]."""
    crops = draws[:, [transforms.TIME, transforms.ROW, transforms.COLUMN]]
    if self._config.temporal_crop != "random":
      crops[:, 0] = STILL_TIME[self._config.temporal_crop]
    if self._config.spatial_crop != "random":
      crops[:, 1:] = 0.5
    return crops

  def _draw(
    self, bucket: Bucket, *, seed: int, position: int, index: int, crop: list[float]
  ) -> tuple[np.ndarray, Example]:
    """Frames, uint8 [t, h, w, 3], and the rest of the sample at `position`.

    In place of a sample that is bad or too short comes another, drawn by the position's own
    numbers, so that no other position changes.
    """
    source = self._sources[bucket.name]
    bad = short = 0
    while True:
      try:
        example = self._example(bucket, index, time=crop[0])
        return self._cut(example, bucket, crop), example
      except BadSample as error:
        if isinstance(error, TooShort) and self._fits_another(bucket, error.duration):
          short += 1
        else:
          bad += 1
          self._quarantine.record(error)
        if bad == REDRAWS:
          raise DataError(f"{REDRAWS} bad samples in a row; the last: {error}") from error
        if short == SHORT_REDRAWS:
          raise DataError(
            f"bucket {bucket.name!r}: {SHORT_REDRAWS} samples in a row are too short for it; give "
            f"it fewer frames, or leave it out; the last: {error}"
          ) from error
      bits = random_bits(seed, np.asarray([position]), draws=transforms.DRAWS + bad + short)
      others = self._chosen.get(bucket.name, range(len(source)))
      index = int(others[int(bits[0, -1] % np.uint64(len(others)))])

  def _fits_another(self, bucket: Bucket, duration: float) -> bool:
    return any(
      other.span().fits(duration)
      for other in self._buckets.values()
      if other.subset == bucket.subset
    )

  def _cut(self, example: Example, bucket: Bucket, crop: list[float]) -> np.ndarray:
    if example.clip is None:
      assert example.frames is not None
      return example.frames
    time, row, column = crop
    size = (bucket.height, bucket.width)
    return transforms.crop_clip(
      example.clip, span=bucket.span(time), size=size, row=row, column=column
    )

  def _example(self, bucket: Bucket, index: int, *, time: float) -> Example:
    known = self._cache.get((bucket.name, index))
    if isinstance(known, BadSample):
      raise known.fresh()
    if known is not None:
      return known
    sample: Sample | None = None
    latents = self._latents.get(bucket.name)
    read = self._sources[bucket.name].__getitem__
    if latents is not None:
      read = text_reader(self._sources[bucket.name])
    if self._in_work is not None:
      self._in_work.note(*self._sources[bucket.name].name(index))
    try:
      sample = read(index)
      fps = self._rate(bucket, index)
      caption = bucket_prefix(self._config, bucket, fps=fps).caption(sample)
      tokens = encode_padded(self._tokenizer, caption, length=self._config.text_length)
      frames = latents(index) if latents is not None else None
      clip = None
      if frames is None:
        clip = decode_clip(sample, bucket, config=self._config, time=time)
      texts = self._texts[bucket.name].items()
      streams = {name: text(index, caption) for name, text in texts}
      example = Example(frames, clip, tokens, streams, fps)
      size = (bucket.height, bucket.width)
      if clip and not transforms.has_slack(clip, span=bucket.span(), size=size):
        example = Example(self._cut(example, bucket, [0.0] * 3), None, tokens, streams, fps)
    except BadSample as error:
      if sample is not None:
        error.shard, error.key = sample["__shard__"], sample["__key__"]
      self._keep((bucket.name, index), error.fresh(), size=NOTE_BYTES)
      raise
    except DataError:
      raise  # the storage or the shard, which it names
    except Exception as error:
      shard, key = self._sources[bucket.name].name(index)
      raise DataError(f"shard {shard}, key {key!r}: {type(error).__name__}: {error}") from error
    self._keep((bucket.name, index), example, size=example.nbytes)
    return example

  def _rate(self, bucket: Bucket, index: int) -> float:
    """The frames per second that are sampled of a sample."""
    if bucket.rate == "fixed":
      return bucket.fps
    return bucket.span().rate(float(self._seconds[bucket.subset][index]))

  def _keep(self, name: tuple[str, int], value: Example | BadSample, *, size: int) -> None:
    """Caches while there is room. Nothing is put out: a shuffled epoch has no favourites."""
    with self._lock:
      if self._config.cache_bytes and self._cached + size <= self._config.cache_bytes:
        if name not in self._cache:
          self._cache[name] = value
          self._cached += size


def decode_clip(sample: Sample, bucket: Bucket, *, config: InputConfig, time: float) -> Clip:
  """The clip as the bucket scales it: the whole with a cache, else the part that `time` asks for.

  Raises:
    BadSample: as `decode_sample`.
  """
  span = bucket.span(time)
  kept = None if config.cache_bytes else span
  clip = decode_sample(sample, bucket, limits=config.limits, span=kept)
  span.check(clip.duration)
  return clip


def still_frames(
  sample: Sample, bucket: Bucket, *, config: InputConfig
) -> UInt8[np.ndarray, "t h w 3"]:
  """The frames of a sample that `Loader` gives where the config leaves nothing to be drawn.

  Raises:
    BadSample: as `decode_sample`.
  """
  time = STILL_TIME[config.temporal_crop]
  clip = decode_clip(sample, bucket, config=config, time=time)
  size = (bucket.height, bucket.width)
  return transforms.crop_clip(clip, span=bucket.span(time), size=size, row=0.5, column=0.5)


def decode_sample(sample: Sample, bucket: Bucket, *, limits: Limits, span: Span | None) -> Clip:
  """The clip or image of a sample, scaled to what the bucket covers; as `decode_video`.

  Raises:
    BadSample: it has none, or one that is damaged or too short.
  """
  cover = bucket.covered
  for suffix in VIDEO:
    if suffix in sample:
      return decode_video(sample[suffix], cover=cover, limits=limits, span=span)
  for suffix in IMAGE:
    if suffix in sample:
      if bucket.frames > 1:
        reason = f"an image, where the bucket wants {bucket.frames} frames"
        raise TooShort(reason, duration=0.0)
      return decode_image(sample[suffix], cover=cover, limits=limits)
  found = ", ".join(sorted(k for k in sample if not k.startswith("__"))[:8]) or "nothing"
  raise BadSample(f"neither video nor image; the sample has {found[:80]}")

"""One batch: read, decode, crop, tokenise, with a memory of what was decoded."""

import threading
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidgen.errors import DataError
from vidgen.inputs import transforms
from vidgen.inputs.decode import IMAGE, VIDEO, Clip, decode_image, decode_video
from vidgen.inputs.quarantine import BadSample, Quarantine
from vidgen.inputs.sources import Sample, Source
from vidgen.inputs.text import encode_padded, make_tokenizer, token_mask

if TYPE_CHECKING:
  from vidgen.inputs.pipeline import Bucket, InputConfig

REDRAWS = 64  # bad samples in a row after which no further replacement is drawn


class Plan(NamedTuple):
  """What one batch takes: positions of the bucket's data order and the samples there, int64 [b]."""

  bucket: str
  positions: np.ndarray
  indices: np.ndarray


class Example(NamedTuple):
  """The part of a sample that no random number touches."""

  clip: Clip
  tokens: np.ndarray


def bucket_seed(seed: int, bucket: str) -> int:
  """64 bits for one bucket, so that buckets of one subset do not go in step."""
  sequence = np.random.SeedSequence([seed, zlib.crc32(bucket.encode())])
  return int(sequence.generate_state(1, np.uint64)[0])


class Loader:
  """Callable: a `Plan` to a batch. Threads share it; each worker process has a copy."""

  def __init__(
    self,
    config: "InputConfig",
    *,
    sources: Mapping[str, Source],
    quarantine: Quarantine,
    seed: int,
  ):
    self._config = config
    self._sources = dict(sources)
    self._quarantine = quarantine
    self._seed = seed
    self._reset()

  def _reset(self) -> None:
    self._buckets = {bucket.name: bucket for bucket in self._config.buckets}
    self._tokenizer = make_tokenizer(self._config.tokenizer)
    self._cache: dict[tuple[str, int], Example | BadSample] = {}
    self._cached = 0
    self._lock = threading.Lock()

  def __getstate__(self):
    names = ("_config", "_sources", "_quarantine", "_seed")
    return {name: self.__dict__[name] for name in names}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._reset()

  def __call__(self, plan: Plan) -> dict[str, np.ndarray]:
    """The batch: video [b, t, h, w, 3], text and text_mask [b, l], fps [b].

    Raises:
      DataError: `REDRAWS` bad samples in a row, or a failure that is not the sample's; both named.
    """
    bucket, config = self._buckets[plan.bucket], self._config
    size = len(plan.positions)
    seed = bucket_seed(self._seed, bucket.name)
    draws = transforms.uniforms(seed, plan.positions)
    time = {"random": draws[:, transforms.TIME], "center": np.full(size, 0.5)}
    place = draws if config.spatial_crop == "random" else np.full_like(draws, 0.5)
    times = time.get(config.temporal_crop, np.zeros(size))
    video = np.empty((size, bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    tokens = np.empty((size, config.text_length), np.int32)
    for i in range(size):
      tokens[i] = self._fill(
        video[i],
        bucket,
        seed=seed,
        position=int(plan.positions[i]),
        index=int(plan.indices[i]),
        crop=(float(times[i]), float(place[i, transforms.ROW]), float(place[i, transforms.COLUMN])),
      )
    mirrored = draws[:, transforms.FLIP] < config.flip
    if mirrored.any():
      video[mirrored] = video[mirrored, :, :, ::-1]
    mask = token_mask(tokens, end=self._tokenizer.end)
    transforms.drop_captions(
      tokens,
      mask,
      draws[:, transforms.DROP] < config.caption_dropout,
      end=self._tokenizer.end,
      pad=self._tokenizer.pad,
    )
    return {
      "video": transforms.to_unit_range(video),
      "text": tokens,
      "text_mask": mask,
      "fps": np.full(size, bucket.fps, np.float32),
    }

  def _fill(
    self,
    out: np.ndarray,
    bucket: "Bucket",
    *,
    seed: int,
    position: int,
    index: int,
    crop: tuple[float, float, float],
  ) -> np.ndarray:
    """Writes the frames of the sample at `position` into `out`, and returns its tokens.

    In place of a bad sample comes another, drawn by the position's own numbers, so that no other
    position changes.
    """
    source = self._sources[bucket.name]
    bad: BadSample | None = None
    for attempt in range(REDRAWS):
      if attempt:
        redraw = transforms.random_bits(
          seed, np.asarray([position]), draws=transforms.DRAWS + attempt
        )
        index = int(redraw[0, -1] % np.uint64(len(source)))
      try:
        example = self._example(bucket, index)
        time, row, column = crop
        transforms.crop_clip(example.clip, out, fps=bucket.fps, time=time, row=row, column=column)
        return example.tokens
      except BadSample as error:
        bad = error
        if not bad.shard:
          bad.shard, bad.key = source.name(index)
        self._quarantine.record(bad)
    raise DataError(f"{REDRAWS} bad samples in a row; the last: {bad}")

  def _example(self, bucket: "Bucket", index: int) -> Example:
    known = self._cache.get((bucket.name, index))
    if isinstance(known, BadSample):
      raise known
    if known is not None:
      return known
    sample: Sample | None = None
    try:
      sample = self._sources[bucket.name][index]
      example = Example(self._decode(sample, bucket), self._tokens(sample))
    except BadSample as error:
      if sample is not None:
        error.shard, error.key = sample["__shard__"], sample["__key__"]
      self._keep((bucket.name, index), error, size=0)
      raise
    except Exception as error:
      shard, key = self._sources[bucket.name].name(index)
      raise DataError(f"shard {shard}, key {key!r}: {type(error).__name__}: {error}") from error
    self._keep((bucket.name, index), example, size=example.clip.frames.nbytes)
    return example

  def _keep(self, name: tuple[str, int], value: Example | BadSample, *, size: int) -> None:
    """Caches while there is room. Nothing is put out: a shuffled epoch has no favourites."""
    with self._lock:
      if self._config.cache_bytes and self._cached + size <= self._config.cache_bytes:
        if name not in self._cache:
          self._cache[name] = value
          self._cached += size

  def _decode(self, sample: Sample, bucket: "Bucket") -> Clip:
    cover, limits = (bucket.height, bucket.width), self._config.limits
    for suffix in VIDEO:
      if suffix in sample:
        return decode_video(sample[suffix], cover=cover, limits=limits)
    for suffix in IMAGE:
      if suffix in sample:
        if bucket.frames > 1:
          raise BadSample(f"an image, where the bucket wants {bucket.frames} frames")
        return decode_image(sample[suffix], cover=cover, limits=limits)
    found = ", ".join(sorted(k for k in sample if not k.startswith("__"))[:8]) or "nothing"
    raise BadSample(f"neither video nor image; the sample has {found[:80]}")

  def _tokens(self, sample: Sample) -> np.ndarray:
    if "txt" not in sample:
      raise BadSample("missing caption")
    try:
      caption = sample["txt"].decode("utf-8").strip()
    except UnicodeDecodeError as error:
      raise BadSample(f"the caption is not UTF-8: {error}") from error
    if not caption:
      raise BadSample("missing caption: the text is empty")
    return encode_padded(self._tokenizer, caption, length=self._config.text_length)

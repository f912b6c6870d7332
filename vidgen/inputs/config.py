"""What an input pipeline is to make: batch shapes, and how samples become batches."""

import dataclasses
from typing import Literal

from vidgen.inputs.decode import Limits, Span
from vidgen.inputs.degradations import DegradationConfig
from vidgen.inputs.text import make_tokenizer
from vidgen.systems.shapes import Packing


@dataclasses.dataclass(frozen=True)
class Bucket(Packing):
  """One batch shape: `frames` frames of `height` x `width` at `fps`, from `subset` of the data.

  `weight` is its share of the batches, relative to the other buckets; those of one `group` share
  the sum of their weights by how many samples they have. Images have one frame.

  A clip is for the bucket if it lasts `min_seconds` or more and less than `max_seconds`, and has at
  least `min_rate` frames per second of its own; 0 is no bound. With `rate` "spread" the frames of a
  clip shorter than frames / fps are spread evenly over all of it: fps is the lowest rate there is.
  A clip must then have as many frames of its own as are sampled.

  Behind the frames of a clip stand `images` independent images of `image_subset` (Video Diffusion
  Models, joint training); with one frame and the same subset a row is a pack of images. It then has
  a caption for the clip and for each image, in as many slots as `captions` says (0: as many as
  needed): buckets of as many frames and slots in all have batches of one shape (`inputs.packing`).

  Samples are scaled to cover the height and width of `cover`, of which the bucket's own are cut;
  (0, 0) is the bucket's own.
  """

  name: str = "video"
  subset: str = "video"
  frames: int = 16
  height: int = 64
  width: int = 64
  fps: float = 8.0
  weight: float = 1.0
  group: str = ""
  min_seconds: float = 0.0
  max_seconds: float = 0.0
  min_rate: float = 0.0
  rate: Literal["fixed", "spread"] = "fixed"
  images: int = 0
  image_subset: str = "image"
  captions: int = 0
  cover: tuple[int, int] = (0, 0)

  @property
  def covered(self) -> tuple[int, int]:
    """The (height, width) that samples are scaled to cover."""
    return self.cover if any(self.cover) else (self.height, self.width)

  @property
  def chooses(self) -> bool:
    """Whether what is taken hangs on a clip's length or rate, which must be measured before."""
    return bool(self.min_seconds or self.max_seconds or self.min_rate) or self.rate == "spread"

  def span(self, draw: float = 0.0) -> Span:
    """What is sampled of a clip; `draw` in [0, 1] says from where."""
    return Span(fps=self.fps, frames=self.frames, draw=draw, spread=self.rate == "spread")

  def __post_init__(self):
    if min(self.min_seconds, self.max_seconds, self.min_rate) < 0:
      raise ValueError(f"bucket {self.name!r}: seconds and rates must not be negative")
    if self.max_seconds and self.max_seconds <= self.min_seconds:
      raise ValueError(f"bucket {self.name!r}: max_seconds must be more than min_seconds")
    if min(self.frames, self.height, self.width) < 1:
      raise ValueError(f"bucket {self.name!r}: frames, height and width must be at least 1")
    if self.fps <= 0 or self.weight <= 0:
      raise ValueError(f"bucket {self.name!r}: fps and weight must be positive")
    if min(self.images, self.captions) < 0 or 0 < self.captions < 1 + self.images:
      raise ValueError(
        f"bucket {self.name!r}: captions must be 0, or {1 + self.images} or more for its images, "
        f"got {self.captions} for {self.images}"
      )
    if self.covered[0] < self.height or self.covered[1] < self.width:
      raise ValueError(
        f"bucket {self.name!r}: {self.height} x {self.width} cannot be cut of cover {self.cover}"
      )


@dataclasses.dataclass(frozen=True)
class EncoderSource:
  """A frozen text encoder, which makes a text stream of the stage; padded to `length` tokens.

  `folder` holds its weights and its config as Hugging Face leaves them, and the tokenizer, unless
  that is at `tokenizer`. It may be empty where embeddings come from a cache, whose word is then
  taken for what made them. `prefix` goes before every text, as UL2's "[S2S] ". `reads` is the whole
  caption, or what it has in double quotes (Movie Gen's ByT5, section 3.1.3), which may be nothing.
  It computes in `dtype`.
  """

  length: int
  folder: str = ""
  tokenizer: str = ""
  prefix: str = ""
  reads: Literal["caption", "quoted"] = "caption"
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    if self.length < 2:
      raise ValueError(f"length must be at least 2, got {self.length}")


@dataclasses.dataclass(frozen=True)
class AutoencoderSource:
  """A trained autoencoder, whose latents a stage is trained on: the run at `workdir`.

  `step` None is its newest; `weights` says which of its parameters. Latents are kept, and where
  they are made on every batch rounded, to `dtype`. `frames` "clip" encodes clips whole, "each"
  every frame as an image. A config may leave `workdir` to the command line.
  """

  workdir: str = ""
  step: int | None = None
  weights: Literal["ema", "params"] = "ema"
  dtype: Literal["float32", "bfloat16"] = "bfloat16"
  frames: Literal["clip", "each"] = "clip"


@dataclasses.dataclass(frozen=True)
class InputConfig:
  """How samples become batches.

  `temporal_crop` and `spatial_crop` say where a longer or larger sample is cut; `flip` is the
  probability of mirroring, off because captions say left and right. Each of `workers` processes
  (0: this one) decodes with `threads` threads and keeps `cache_bytes` of decoded samples; with a
  cache whole clips are decoded, without one only what is needed. More than `bad_count` bad samples
  or `bad_fraction` of the data set stop the run.

  `encoders` are frozen text encoders by the name of the stage's text stream. They run on every
  batch, or, where `embeddings` names a folder (relative to the data set), what `vidgen data embed`
  left there is read instead: with a `prefix`, of captions behind it.

  `autoencoder`, of a stage that is trained on latents, turns the clips of every batch into them,
  or, where `latents` names a folder (relative to the data set), what `vidgen data latents --cache`
  left there is read instead; its `workdir` may then be empty.

  `prefix` names what goes before every caption (`inputs.prefix`): the bucket's frame rate, but of
  images, and the camera motion that a sample's json names as "camera", unless its
  "camera_confidence" is below `camera_confidence` (not given by the paper).

  `degradation` adds a small, spoilt copy of every clip, "low", for an upsampler.

  With `aspect_tolerance` a sample is only for the buckets of its subset whose aspect ratio is the
  nearest to its own, and for none if it is more than 1 + `aspect_tolerance` times as wide or as
  tall. With `max_upsampling` it is for none that it must be enlarged for by more than that.
  """

  buckets: tuple[Bucket, ...] = (Bucket(),)
  text_length: int = 128
  tokenizer: str = "byte"
  encoders: dict[str, EncoderSource] = dataclasses.field(default_factory=dict)
  embeddings: str = ""
  autoencoder: AutoencoderSource | None = None
  latents: str = ""
  prefix: tuple[Literal["fps", "camera"], ...] = ()
  camera_confidence: float = 0.5
  caption_dropout: float = 0.1
  temporal_crop: Literal["random", "center", "start"] = "random"
  spatial_crop: Literal["random", "center"] = "center"
  flip: float = 0.0
  degradation: DegradationConfig | None = None
  shuffle: bool = True
  workers: int = 0
  threads: int = 2
  prefetch: int = 4
  cache_bytes: int = 0
  limits: Limits = dataclasses.field(default_factory=Limits)
  bad_count: int = 1000
  bad_fraction: float = 0.05
  aspect_tolerance: float = 0.0
  max_upsampling: float = 0.0

  def chooses(self, subset: str) -> bool:
    """Whether buckets of this subset choose their samples, so that these must be measured."""
    everywhere = bool(self.aspect_tolerance or self.max_upsampling)
    return any(b.subset == subset and (everywhere or b.chooses) for b in self.buckets)

  def __post_init__(self):
    names = [bucket.name for bucket in self.buckets]
    if not names or len(set(names)) != len(names):
      raise ValueError(f"buckets must be at least one, with names of their own, got {names}")
    if self.text_length < 1:
      raise ValueError("text_length must be at least 1")
    for name in ("caption_dropout", "flip", "bad_fraction", "camera_confidence"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
    for name in ("aspect_tolerance", "max_upsampling"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} must not be negative")
    for name in ("workers", "threads", "prefetch", "cache_bytes", "bad_count"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} must not be negative")
    if self.degradation is not None:
      for bucket in self.buckets:
        self.degradation.low_size(bucket.height, bucket.width)
    if self.latents:
      self._check_still()
    self._check_packed()
    if "fps" in self.prefix and self.embeddings:
      for bucket in self.buckets:
        if bucket.rate == "spread" and bucket.frames > 1:
          raise ValueError(
            "prefix: cached embeddings are of captions behind one rate, and bucket "
            f"{bucket.name!r} has one for each clip; run the encoders on every batch"
          )
    make_tokenizer(self.tokenizer)
    for name, encoder in self.encoders.items():
      if not name.isidentifier() or name in ("video", "latents", "text", "text_mask", "fps"):
        raise ValueError(f"encoders: {name!r} cannot be the name of a text stream")
      if not encoder.folder and not self.embeddings:
        raise ValueError(f"encoders.{name}: needs a folder, or embeddings one that has them")
    if self.embeddings and not self.encoders:
      raise ValueError("embeddings names a folder, but no encoders are named")

  def _check_still(self) -> None:
    """That a sample gives one clip, whenever it is drawn: a cache has the latents of one."""
    if self.autoencoder is None:
      raise ValueError("latents: needs autoencoder, whose they are")
    if self.degradation is not None:
      raise ValueError("degradation: needs pixels; cached latents have none, leave latents empty")
    for name in ("temporal_crop", "spatial_crop"):
      if getattr(self, name) == "random":
        raise ValueError(f"{name}: cached latents are of one crop of each clip; say 'center'")
    if self.flip:
      raise ValueError("flip: cached latents are of clips that are not mirrored; set it to 0")
    for bucket in self.buckets:
      if any(bucket.cover):
        raise ValueError(
          f"bucket {bucket.name!r}: cached latents are of whole clips, without cover"
        )

  def _check_packed(self) -> None:
    """That nothing is asked of packed rows that is made for a clip alone."""
    for bucket in (bucket for bucket in self.buckets if bucket.packed):
      if self.autoencoder is not None or self.degradation is not None:
        raise ValueError(
          f"bucket {bucket.name!r}: images and captions are of pixels alone, without autoencoder "
          "and degradation"
        )
      if bucket.images and bucket.frames > 1 and "fps" in self.prefix and self.embeddings:
        raise ValueError(
          "prefix: cached embeddings of a bucket are of captions behind its rate, and the images "
          f"of bucket {bucket.name!r} have none; run the encoders on every batch"
        )

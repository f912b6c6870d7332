"""What one of Imagen Video's models is, as fields with their defaults."""

import dataclasses
from typing import Literal

from vidgen.diffusion.gaussian import Weight
from vidgen.errors import ConfigError
from vidgen.models.video_unet import Level, check_widths
from vidgen.nn.remat import RematPolicy
from vidgen.systems.imagen_video.distillation import Distillation
from vidgen.systems.imagen_video.resolution import Resolution, Role, shape_text
from vidgen.systems.shapes import BatchShape, PackedShape, check_shapes
from vidgen.systems.stage import SampleSettings
from vidgen.systems.text import ByteTextConfig, TextStream, check_text


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The fields of `VideoUNet` that say how it is built; widths are not given by the paper.

  See there. Nor are heads, the number of blocks, or where attention is, but for what is said in the
  configs.
  """

  levels: tuple[Level, ...] = (Level(channels=128, blocks=2),)
  temporal: Literal["attention", "convolution"] = "convolution"
  embedding: int | None = None
  stem: int | None = None
  patch: int = 1
  head_size: int = 64
  groups: int = 32
  residual: Literal["zero", "plain"] = "zero"
  places: bool = False
  scan: bool = True

  def __post_init__(self):
    if not self.levels:
      raise ValueError("levels must not be empty")
    check_widths(self.levels, groups=self.groups, head_size=self.head_size, temporal=self.temporal)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How noise becomes a clip; the steps and the guidance scale are of the sample settings.

  method, gamma, langevin: see `diffusion.gaussian_samplers.Method`; gamma is not given by the
  paper, 0.3 is that of Video Diffusion Models for text. threshold: of the clean clip at every step,
  per clip. guidance "oscillating" (section 2.6): high for the first part of the steps (`first` is
  not given by the paper), then high and `low_scale` in turn. augmentation_snr: of the small clip
  (section 2.5: 3 or 5).
  """

  method: Literal["ddim", "ancestral", "euler", "heun", "dpm++", "stochastic"] = "ancestral"
  gamma: float = 0.3
  langevin: float = 0.0
  threshold: Literal["none", "static", "dynamic"] = "static"
  percentile: float = 0.995
  guidance: Literal["constant", "oscillating"] = "constant"
  low_scale: float = 1.0
  first: float = 0.1
  augmentation_snr: float = 5.0

  def __post_init__(self):
    if not 0 <= self.gamma <= 1 or not 0 < self.percentile <= 1 or not 0 <= self.first <= 1:
      raise ValueError("gamma, percentile and first must lie in [0, 1]")
    if self.langevin < 0 or self.low_scale < 0 or self.augmentation_snr <= 0:
      raise ValueError("langevin and low_scale must be 0 or more, augmentation_snr positive")
    if self.langevin and self.method != "ancestral":
      raise ValueError(f"langevin is of the method 'ancestral', not of {self.method!r}")


def _paper_streams() -> dict[str, TextStream]:
  # T5-XXL is the paper's; the length is not given by it.
  return {"t5": TextStream(width=4096, length=128)}


@dataclasses.dataclass(frozen=True)
class ImagenVideoConfig:
  """One of the seven models.

  role and factor: what it multiplies (`Resolution`). Text has exactly one source, as in
  `systems.text`. schedule: cosine, clipped to [logsnr_low, logsnr_high], or Imagen's linear one;
  zero_terminal: time 1 is noise alone. loss: what the error of v, the network's output, is weighted
  to be: "v" itself is not what the paper prints, which by its notes is "eps", a loss that has no
  weight where there is no signal. whole: t, h and w of what is sampled, where training is on parts
  of clips; None: those of the first bucket. distillation: a student of a trained model, see there.
  """

  role: Role = "base"
  factor: int = 1
  network: UNetConfig = UNetConfig()
  text_streams: dict[str, TextStream] = dataclasses.field(default_factory=_paper_streams)
  text_encoder: ByteTextConfig | None = None
  buckets: tuple[PackedShape, ...] = (PackedShape("video", frames=16, height=24, width=40),)
  whole: tuple[int, int, int] | None = None
  schedule: Literal["cosine", "linear"] = "cosine"
  logsnr_low: float = -20.0
  logsnr_high: float = 20.0
  zero_terminal: bool = False
  loss: Weight = "v"
  sampler: SamplerConfig = SamplerConfig()
  distillation: Distillation | None = None
  dtype: Literal["float32", "bfloat16"] = "bfloat16"  # not given by the paper
  remat: RematPolicy = "full"  # not given by the paper; see `nn.remat`

  def __post_init__(self):
    check_text(self.text_streams, self.text_encoder)
    if len(self.text_streams) > 1:
      raise ValueError(f"one text stream is read, not {', '.join(sorted(self.text_streams))}")
    check_shapes(self.buckets)
    resolution = self.resolution
    for shape in (*map(self.clip_shape, self.buckets), self.clip):
      resolution.small_shape(*shape)
      self.check_sides(*shape[1:])
    for bucket in self.buckets:
      if bucket.images and self.role == "temporal":
        raise ValueError(f"bucket {bucket.name}: images have no frames to put between")
      if bucket.captions and bucket.captions < 1 + bucket.images:
        raise ValueError(f"bucket {bucket.name}: {bucket.captions} captions are too few")
    if self.logsnr_low >= self.logsnr_high:
      raise ValueError("logsnr_low must be less than logsnr_high")
    if self.schedule == "linear" and (self.logsnr_low, self.logsnr_high) != (-20.0, 20.0):
      raise ValueError("logsnr_low and logsnr_high are of the cosine schedule")

  @property
  def resolution(self) -> Resolution:
    """What the model multiplies."""
    return Resolution(self.role, self.factor)

  @property
  def stride(self) -> int:
    """What sides must be multiples of."""
    stride = self.network.patch
    for level in self.network.levels:
      stride *= level.stride
    return stride

  def check_sides(self, height: int, width: int) -> None:
    """Raises ValueError where the network cannot halve them."""
    if height % self.stride or width % self.stride:
      raise ValueError(f"sides {height} x {width} are not multiples of {self.stride}")

  @property
  def clip(self) -> tuple[int, int, int]:
    """t, h and w of what is sampled."""
    return self.whole or self.clip_shape(self.buckets[0])

  @staticmethod
  def clip_shape(bucket: BatchShape) -> tuple[int, int, int]:
    """t, h and w of the clip in a row of a bucket."""
    return bucket.frames, bucket.height, bucket.width

  def sample_shape(self, settings: SampleSettings) -> tuple[int, int, int]:
    """t, h and w of what is made with `settings`: `clip`, where they do not say.

    Raises:
      ConfigError: the network cannot make that shape.
    """
    asked = (settings.frames, settings.height, settings.width)
    shape = tuple(d if a is None else a for a, d in zip(asked, self.clip, strict=True))
    try:
      self.check_sides(*shape[1:])
      self.resolution.small_shape(*shape)
    except ValueError as error:
      raise ConfigError(f"samples of {shape_text(shape)} cannot be made: {error}") from error
    return shape[0], shape[1], shape[2]

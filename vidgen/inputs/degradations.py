"""Small, spoilt copies of clips, for an upsampler to learn from.

Second-order degradations as in Real-ESRGAN (Wang et al., 2021, section 3): two rounds of blur,
resizing, noise and JPEG, then the small size, a sinc filter and JPEG. Movie Gen (section 3.1.5)
names them and gives no numbers; the defaults are Real-ESRGAN's. What is drawn is drawn once a clip
and follows from (seed, position) alone; only the noise is another in every frame. A clip of 14
frames of 1080 x 1920 takes about 9 CPU seconds, most of it in blurring.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from vidgen.inputs.blur_kernels import bell, sinc
from vidgen.inputs.decode import decode_video
from vidgen.inputs.order import random_bits
from vidgen.media.video import encode_mp4

Range = tuple[float, float]
Resize = Literal["area", "bilinear", "bicubic"]
Frame = Float[np.ndarray, "_ _ 3"]  # float32, in [0, 1]
Step = Callable[[Frame, np.random.Generator], Frame]

LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # of red, green and blue
RESIZES: tuple[Resize, ...] = ("area", "bilinear", "bicubic")
FINAL_QUALITY = (30.0, 95.0)
CUTOFF = (math.pi / 5, math.pi)  # radians a pixel


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of degradations; a pair is a range from which a clip's value is drawn.

  `blur`, `sinc`, `gaussian` and `grey` are probabilities: of blurring at all, with a sinc instead
  of a bell, of Gaussian instead of shot noise, and of noise without colour. `sigma` is of the bell
  along its axes, in pixels. `resize` is the odds of (larger, smaller, the same), by a factor in
  `scale`. `noise` is in units of a byte, `shot` scales what counting up to 255 photons would add.
  `jpeg` is a quality.
  """

  blur: float = 1.0
  sinc: float = 0.1
  sigma: Range = (0.2, 3.0)
  resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
  scale: Range = (0.15, 1.5)
  gaussian: float = 0.5
  noise: Range = (1.0, 30.0)
  shot: Range = (0.05, 3.0)
  grey: float = 0.4
  jpeg: Range = (30.0, 95.0)

  def __post_init__(self):
    _refuse_ranges(self, ("sigma", "scale", "noise", "shot", "jpeg"))
    _refuse_odds(self, ("blur", "sinc", "gaussian", "grey"))
    if self.sigma[0] <= 0 or self.scale[0] <= 0 or not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
      raise ValueError("sigma and scale must be positive, jpeg within [1, 100]")
    if self.scale[0] > 1 or self.scale[1] < 1:
      raise ValueError(f"scale {self.scale} must reach from 1 or less to 1 or more")
    if min(self.resize) < 0 or sum(self.resize) <= 0:
      raise ValueError(f"resize {self.resize} are no odds")


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
  """How a clip becomes "low", smaller by `factor` (1.875: 1080 from 576 rows).

  `clean` is the probability that a clip is made small and nothing else; `artifacts` likewise, and
  then an autoencoder's reconstruction takes its place (Movie Gen: "randomly"; how often is not
  given). `first` and `second` are the rounds; the scale of the first is relative to the clip, of
  the second to the small size. `final_sinc` and `codec` are probabilities of a last sinc filter,
  and of H.264 of a quality in `crf` at the end instead of JPEG (not Real-ESRGAN's).
  `kernels` are the odds of bells: Gaussian, generalised Gaussian and plateau, each round, then
  each elongated; `kernel_sizes` are odd numbers of pixels; `generalised` and `plateau` exponents.
  """

  factor: float = 2.0
  clean: float = 0.0
  artifacts: float = 0.0
  first: Round = dataclasses.field(default_factory=Round)
  second: Round = dataclasses.field(
    default_factory=lambda: Round(
      blur=0.8,
      sigma=(0.2, 1.5),
      resize=(0.3, 0.4, 0.3),
      scale=(0.3, 1.2),
      noise=(1.0, 25.0),
      shot=(0.05, 2.5),
    )
  )
  final_sinc: float = 0.8
  codec: float = 0.0
  crf: Range = (18.0, 40.0)
  kernels: tuple[float, float, float, float, float, float] = (0.45, 0.12, 0.12, 0.25, 0.03, 0.03)
  kernel_sizes: tuple[int, int] = (7, 21)
  generalised: Range = (0.5, 4.0)
  plateau: Range = (1.0, 2.0)

  def __post_init__(self):
    _refuse_ranges(self, ("crf", "kernel_sizes", "generalised", "plateau"))
    _refuse_odds(self, ("clean", "artifacts", "final_sinc", "codec"))
    if self.factor < 1 or self.clean + self.artifacts > 1:
      raise ValueError("factor must be at least 1, clean and artifacts at most 1 together")
    if any(size % 2 == 0 or size < 3 for size in self.kernel_sizes):
      raise ValueError(f"kernel_sizes {self.kernel_sizes} must be odd, and at least 3")
    if min(self.kernels) < 0 or sum(self.kernels) <= 0:
      raise ValueError(f"kernels {self.kernels} are no odds")
    if not 0 <= self.crf[0] <= self.crf[1] <= 51:
      raise ValueError(f"crf {self.crf} must lie within [0, 51]")

  def low_size(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the small clip.

    Raises:
      ValueError: `factor` does not divide the sides.
    """
    low = (round(height / self.factor), round(width / self.factor))
    if max(abs(low[0] * self.factor - height), abs(low[1] * self.factor - width)) > 1e-3:
      raise ValueError(f"degradation.factor {self.factor}: does not divide {height} x {width}")
    return low


def _refuse_ranges(config: object, names: Iterable[str]) -> None:
  for name in names:
    low, high = getattr(config, name)
    if not 0 <= low <= high:
      raise ValueError(f"{name} ({low}, {high}) is no range of numbers of 0 or more")


def _refuse_odds(config: object, names: Iterable[str]) -> None:
  for name in names:
    if not 0 <= getattr(config, name) <= 1:
      raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class Low:
  """Small clips, uint8 [b, t, h, w, 3], and which of them an autoencoder is to reconstruct."""

  video: UInt8[np.ndarray, "b t h w 3"]
  artifacts: Bool[np.ndarray, " b"]


def degrade(
  videos: UInt8[np.ndarray, "b t h w 3"],
  config: DegradationConfig,
  *,
  seed: int,
  positions: Iterable[int],
) -> Low:
  """Small copies of `videos`; row i follows from (seed, positions[i]) and its video alone."""
  lows, artifacts = [], []
  for video, position in zip(videos, positions, strict=True):
    chain = Chain(config, size=video.shape[1:3], seed=seed, position=position)
    lows.append(chain(video))
    artifacts.append(chain.artifacts)
  return Low(np.stack(lows), np.array(artifacts, bool))


class Chain:
  """What happens to one clip: drawn when made, applied when called."""

  def __init__(self, config: DegradationConfig, *, size: tuple[int, int], seed: int, position: int):
    bits = random_bits(seed ^ 0x6465_6772_6164_6521, np.array([position], np.int64), draws=2)
    self._key = bits[0]
    rng = np.random.Generator(np.random.Philox(key=self._key))
    low = config.low_size(*size)
    kind = rng.random()
    self.artifacts = bool(kind < config.artifacts)
    self.crf: float | None = None
    self.steps: list[tuple[str, Step]] = []
    if kind < config.artifacts + config.clean:
      self._add("area", _resizing("area", low))
      return
    size = self._add_round(config, config.first, rng, size=size, relative=size)
    size = self._add_round(config, config.second, rng, size=size, relative=low)
    how = RESIZES[rng.integers(3)]
    end: list[tuple[str, Step]] = [(how, _resizing(how, low))]
    if rng.random() < config.final_sinc:
      end.append(("sinc", _blurring(_drawn_sinc(config, rng))))
    quality = rng.uniform(*FINAL_QUALITY)
    crf, by_codec = rng.uniform(*config.crf), rng.random() < config.codec
    jpeg = [] if by_codec else [(f"jpeg {quality:.0f}", _jpeg(quality))]
    self.crf = crf if by_codec else None
    self.steps += [*jpeg, *end] if rng.random() < 0.5 else [*end, *jpeg]

  def _add(self, name: str, step: Step) -> None:
    self.steps.append((name, step))

  def _add_round(
    self,
    config: DegradationConfig,
    round_: Round,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    relative: tuple[int, int],
  ) -> tuple[int, int]:
    """Adds a round's steps for frames of `size`, and returns their size after it."""
    if rng.random() < round_.blur:
      kernel = _drawn_kernel(config, round_, rng)
      self._add(f"blur {len(kernel)}", _blurring(kernel))
    odds = np.array(round_.resize) / sum(round_.resize)
    low, high = round_.scale
    scale = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[rng.choice(3, p=odds)]
    new = (max(1, round(relative[0] * scale)), max(1, round(relative[1] * scale)))
    how = RESIZES[rng.integers(3)]
    if new != size:
      self._add(f"{how} {new[0]}x{new[1]}", _resizing(how, new))
    gaussian, grey = rng.random() < round_.gaussian, rng.random() < round_.grey
    if gaussian:
      self._add("noise", _gaussian_noise(rng.uniform(*round_.noise) / 255, grey=grey))
    else:
      self._add("shot", _shot_noise(rng.uniform(*round_.shot), grey=grey))
    quality = rng.uniform(*round_.jpeg)
    self._add(f"jpeg {quality:.0f}", _jpeg(quality))
    return new

  def __call__(self, video: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """The small clip."""
    frames = []
    for number, frame in enumerate(video):
      # Noise of a frame is a function of its number, so that no frame hangs on those before it.
      rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, number + 1]))
      frame = frame.astype(np.float32) / 255
      for _, step in self.steps:
        frame = step(frame, rng)
      frames.append(_to_bytes(frame))
    low = np.stack(frames)
    return low if self.crf is None else _codec(low, crf=self.crf)


def _to_bytes(frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
  return np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)


def _drawn_kernel(
  config: DegradationConfig, round_: Round, rng: np.random.Generator
) -> Float[np.ndarray, "k k"]:
  if rng.random() < round_.sinc:
    return _drawn_sinc(config, rng)
  size = _drawn_size(config, rng)
  odds = np.array(config.kernels) / sum(config.kernels)
  elongated, family = divmod(int(rng.choice(6, p=odds)), 3)
  first, second = rng.uniform(*round_.sigma, 2)
  angle = rng.uniform(-math.pi, math.pi)
  exponent = 1.0
  if family:  # as often below 1 as above, where the range has both
    low, high = config.generalised if family == 1 else config.plateau
    middle = min(max(1.0, low), high)
    exponent = rng.uniform(low, middle) if rng.random() < 0.5 else rng.uniform(middle, high)
  sigmas = (first, second if elongated else first)
  return bell(size, sigmas=sigmas, angle=angle, exponent=exponent, plateau=family == 2)


def _drawn_size(config: DegradationConfig, rng: np.random.Generator) -> int:
  low, high = config.kernel_sizes
  return int(low + 2 * rng.integers((high - low) // 2 + 1))


def _drawn_sinc(config: DegradationConfig, rng: np.random.Generator) -> Float[np.ndarray, "k k"]:
  return sinc(_drawn_size(config, rng), cutoff=rng.uniform(*CUTOFF))


def _blurring(kernel: Float[np.ndarray, "k k"]) -> Step:
  """Convolution, by Fourier transforms as kernels are large; beyond the border is its mirror."""
  reach = len(kernel) // 2

  @functools.lru_cache(maxsize=1)  # all frames of a clip are alike
  def transformed(shape: tuple[int, int]) -> np.ndarray:
    padded = np.zeros(shape, np.float32)
    padded[: len(kernel), : len(kernel)] = kernel
    return np.fft.rfft2(padded)

  def blur(frame: Frame, rng: np.random.Generator) -> Frame:
    del rng
    h, w, _ = frame.shape
    planes = np.moveaxis(frame, 2, 0)
    padded = np.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    shape = (_quick(padded.shape[1]), _quick(padded.shape[2]))
    result = np.fft.irfft2(np.fft.rfft2(padded, shape) * transformed(shape), shape)
    # What wraps around lies in the first 2 * reach rows and columns, which are cut off.
    result = result[:, 2 * reach : 2 * reach + h, 2 * reach : 2 * reach + w]
    return np.ascontiguousarray(np.moveaxis(result, 0, 2), np.float32)

  return blur


def _quick(length: int) -> int:
  """The least length of `length` or more whose prime factors are 2, 3 and 5."""
  while True:
    rest = length
    for prime in (2, 3, 5):
      while rest % prime == 0:
        rest //= prime
    if rest == 1:
      return length
    length += 1


def _resizing(how: Resize, size: tuple[int, int]) -> Step:
  def resize(frame: Frame, rng: np.random.Generator) -> Frame:
    del rng
    if frame.shape[:2] == size:
      return frame
    if how == "area":
      planes = (Image.fromarray(np.ascontiguousarray(frame[..., c])) for c in range(3))
      resized = [plane.resize((size[1], size[0]), Image.Resampling.BOX) for plane in planes]
      return np.stack([np.asarray(plane) for plane in resized], axis=-1)
    for axis in (0, 1):
      frame = _resampled(frame, size[axis], axis=axis, cubic=how == "bicubic")
    return frame

  return resize


def _resampled(frame: Frame, length: int, *, axis: int, cubic: bool) -> Frame:
  """Two or four taps a pixel however much it shrinks, so that it aliases as cheap resizers do."""
  old = frame.shape[axis]
  place = (np.arange(length) + 0.5) * old / length - 0.5
  first = np.floor(place).astype(int)
  part = (place - first).astype(np.float32)
  weights = _cubic(part) if cubic else {0: 1 - part, 1: part}
  across = (-1, *(1,) * (frame.ndim - 1 - axis))
  total = np.float32(0)
  for offset, weight in weights.items():
    taken = np.take(frame, np.clip(first + offset, 0, old - 1), axis)
    total = total + weight.reshape(across) * taken
  return np.asarray(total, np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> dict[int, np.ndarray]:
  """Weights of the pixels at -1 to 2 around a place `x` past 0 (Keys, 1981)."""

  def near(d):
    return ((a + 2) * d - (a + 3)) * d * d + 1

  def far(d):
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

  return {-1: far(x + 1), 0: near(x), 1: near(1 - x), 2: far(2 - x)}


def _gaussian_noise(sigma: float, *, grey: bool) -> Step:
  def add(frame: Frame, rng: np.random.Generator) -> Frame:
    shape = (*frame.shape[:2], 1) if grey else frame.shape
    return np.clip(frame + np.float32(sigma) * rng.standard_normal(shape, np.float32), 0, 1)

  return add


def _shot_noise(scale: float, *, grey: bool) -> Step:
  """The error of counting photons, 255 where it is white; of brightness alone where `grey`.

  Normal with the Poisson's variance: drawing counts takes eight times as long, and differs only
  where it is nearly black.
  """

  def add(frame: Frame, rng: np.random.Generator) -> Frame:
    clean = np.clip(frame, 0, 1)
    light = clean @ LUMA if grey else clean
    noise = np.sqrt(light / 255) * rng.standard_normal(light.shape, np.float32)
    return np.clip(clean + np.float32(scale) * noise, 0, 1)

  return add


def _jpeg(quality: float) -> Step:
  def compress(frame: Frame, rng: np.random.Generator) -> Frame:
    del rng
    file = io.BytesIO()
    Image.fromarray(_to_bytes(frame)).save(file, "jpeg", quality=round(quality))
    return np.asarray(Image.open(file), np.float32) / 255

  return compress


def _codec(video: UInt8[np.ndarray, "t h w 3"], *, crf: float) -> UInt8[np.ndarray, "t h w 3"]:
  """`video` through H.264, whose sides are even."""
  _, h, w, _ = video.shape
  even = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  return decode_video(encode_mp4(even, fps=24.0, crf=round(crf))).frames[:, :h, :w]

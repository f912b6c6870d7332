"""Encoded media, from bytes, to arrays: video by presentation time, images, audio.

Nothing in a file is believed before it is decoded: declared frame counts and sizes are only used to
refuse. Every failure is a `BadSample`.
"""

import dataclasses
import io
import warnings

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from vidgen.inputs.quarantine import BadSample

VIDEO = ("mp4", "webm", "mkv", "mov", "avi")
IMAGE = ("jpg", "jpeg", "png", "webp")
AUDIO_RATE = 48_000
HDR = (16, 18)  # transfer characteristics: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG)
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # equal on every CPU


warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns below twice it


@dataclasses.dataclass(frozen=True)
class Limits:
  """The largest sample that is decoded; anything above is a bad sample."""

  max_bytes: int = 256 * 2**20
  max_pixels: int = 4096 * 2304  # of one frame or image
  max_frames: int = 20_000
  max_seconds: float = 600.0
  max_streams: int = 16

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) <= 0:
        raise ValueError(f"limits.{field.name} must be positive")


@dataclasses.dataclass(frozen=True)
class Clip:
  """Decoded frames, uint8 [t, h, w, 3], and when each is shown, seconds from the first [t].

  `duration` is until the last frame goes, `tick` the unit of the file's clock; both in seconds.
  """

  frames: np.ndarray
  times: np.ndarray
  duration: float
  tick: float


def fit(width: float, height: float, *, cover: tuple[int, int]) -> tuple[int, int]:
  """The (width, height) to which a picture is scaled to cover (height, width) `cover`, no more."""
  scale = max(cover[0] / height, cover[1] / width)
  return max(cover[1], round(width * scale)), max(cover[0], round(height * scale))


def frame_indices(
  times: np.ndarray, *, fps: float, count: int, start: float, tick: float
) -> np.ndarray:
  """Which frames are on screen at start + k / fps, k = 0 .. count - 1; int [count].

  That is the last frame whose time is not later than the asked one plus half a tick of the file's
  clock: a clock of 1 ms shows the second frame of 30 fps at 33 ms although 1 / 30 s is later.
  """
  wanted = start + np.arange(count) / fps + 0.5 * tick
  return np.maximum(np.searchsorted(times, wanted, side="right") - 1, 0)


def decode_video(
  data: bytes, *, cover: tuple[int, int] | None = None, limits: Limits | None = None
) -> Clip:
  """Every frame of the first video stream, turned upright, square pixels, scaled to `cover`.

  Scaling is by area averaging down and bicubic up, in one pass with the conversion to RGB.

  Raises:
    BadSample: not a video, cut short, no frames, HDR, or above a limit.
  """
  limits = limits or Limits()
  if len(data) > limits.max_bytes:
    raise BadSample(f"{len(data)} bytes, more than limits.max_bytes {limits.max_bytes}")
  if not data:
    raise BadSample("empty file")
  try:
    with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
      return _decode_stream(container, cover, limits)
  except (av.error.FFmpegError, EOFError, OverflowError, ValueError) as error:
    raise BadSample(f"not decodable as video: {_one_line(error)}") from error


def _decode_stream(container, cover: tuple[int, int] | None, limits: Limits) -> Clip:
  if len(container.streams) > limits.max_streams:
    raise BadSample(f"{len(container.streams)} streams, more than {limits.max_streams}")
  if not container.streams.video:
    raise BadSample("no video stream")
  stream = container.streams.video[0]
  context = stream.codec_context
  context.thread_count = 1  # parallel over samples, not within one
  _check_pixels(context.width, context.height, limits)
  tick = float(stream.time_base or 0)
  if tick <= 0:
    raise BadSample("the video stream has no clock")
  reformatter = VideoReformatter()
  frames: list[np.ndarray] = []
  stamps: list[int] = []
  last = 0
  for frame in container.decode(stream):
    if frame.is_corrupt:
      raise BadSample(f"frame {len(frames)} is corrupt")
    if frame.pts is None:
      raise BadSample(f"frame {len(frames)} has no presentation time")
    if stamps and frame.pts <= stamps[-1]:
      raise BadSample(f"presentation times do not increase at frame {len(frames)}")
    if len(frames) >= limits.max_frames:
      raise BadSample(f"more than {limits.max_frames} frames")
    stamps.append(frame.pts)
    if (stamps[-1] - stamps[0]) * tick > limits.max_seconds:
      raise BadSample(f"longer than {limits.max_seconds} s")
    last = frame.duration or 0
    frames.append(_to_rgb(frame, reformatter, stream.sample_aspect_ratio, cover, limits))
  if not frames:
    raise BadSample("no frames")
  if any(f.shape != frames[0].shape for f in frames):
    raise BadSample("the picture size changes within the clip")
  if last <= 0:  # unknown: as long as the frame before, or as the declared rate says
    last = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0
    if not last and stream.average_rate:
      last = round(1 / (float(stream.average_rate) * tick))
  times = (np.asarray(stamps, np.int64) - stamps[0]) * tick
  return Clip(np.stack(frames), times, float(times[-1] + last * tick), tick)


def _to_rgb(frame, reformatter, aspect, cover, limits: Limits) -> np.ndarray:
  _check_pixels(frame.width, frame.height, limits)
  if frame.color_trc in HDR:
    raise BadSample("HDR video; tone-map it to SDR first")
  turns = round(frame.rotation / 90) % 4  # counter-clockwise quarter turns that make it upright
  width, height = frame.width, frame.height
  square = width * float(aspect) if aspect else float(width)
  if cover is None:
    width = max(1, round(square))
  else:
    width, height = fit(square, height, cover=cover[::-1] if turns % 2 else cover)
  down = width <= frame.width and height <= frame.height
  kind = Interpolation.AREA if down else Interpolation.BICUBIC
  rgb = reformatter.reformat(
    frame, width=width, height=height, format="rgb24", interpolation=kind | _EXACT, threads=1
  )
  array = rgb.to_ndarray()
  return np.rot90(array, turns) if turns else array


def decode_image(
  data: bytes, *, cover: tuple[int, int] | None = None, limits: Limits | None = None
) -> Clip:
  """A picture, upright by its EXIF tag, RGB, scaled to `cover`, as a clip of one frame.

  Raises:
    BadSample: not a JPEG, PNG or WebP, cut short, or above a limit.
  """
  limits = limits or Limits()
  if len(data) > limits.max_bytes:
    raise BadSample(f"{len(data)} bytes, more than limits.max_bytes {limits.max_bytes}")
  if not data:
    raise BadSample("empty file")
  try:
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    _check_pixels(image.width, image.height, limits)
    image = _upright(image).convert("RGB")
    if cover is not None:
      size = fit(image.width, image.height, cover=cover)
      down = size[0] <= image.width and size[1] <= image.height
      image = image.resize(size, Image.Resampling.BOX if down else Image.Resampling.BICUBIC)
    return Clip(np.asarray(image)[None], np.zeros(1), float("inf"), 0.0)
  except BadSample:
    raise
  except (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise BadSample(f"not decodable as an image: {_one_line(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
  turn = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
  }.get(image.getexif().get(0x0112, 1))
  return image if turn is None else image.transpose(turn)


def decode_audio(data: bytes, *, limits: Limits | None = None) -> np.ndarray:
  """The first audio stream, mixed to mono, at 48 kHz; float32 [n] in [-1, 1].

  Raises:
    BadSample: no audio stream, not decodable, or above a limit.
  """
  limits = limits or Limits()
  if len(data) > limits.max_bytes:
    raise BadSample(f"{len(data)} bytes, more than limits.max_bytes {limits.max_bytes}")
  if not data:
    raise BadSample("empty file")
  try:
    with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
      if len(container.streams) > limits.max_streams:
        raise BadSample(f"{len(container.streams)} streams, more than {limits.max_streams}")
      if not container.streams.audio:
        raise BadSample("no audio stream")
      resampler = av.AudioResampler(format="flt", layout="mono", rate=AUDIO_RATE)
      parts: list[np.ndarray] = []
      count = 0
      for frame in container.decode(container.streams.audio[0]):
        new = [f.to_ndarray().reshape(-1) for f in resampler.resample(frame)]
        count += sum(map(len, new))
        if count > limits.max_seconds * AUDIO_RATE:
          raise BadSample(f"longer than {limits.max_seconds} s")
        parts += new
      parts += [f.to_ndarray().reshape(-1) for f in resampler.resample(None)]
  except (av.error.FFmpegError, EOFError, OverflowError, ValueError) as error:
    raise BadSample(f"not decodable as audio: {_one_line(error)}") from error
  if not count:
    raise BadSample("no audio samples")
  return np.clip(np.concatenate(parts), -1.0, 1.0)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
  if width <= 0 or height <= 0:
    raise BadSample(f"a picture of {width}x{height}")
  if width * height > limits.max_pixels:
    raise BadSample(f"{width}x{height} is more than limits.max_pixels {limits.max_pixels}")


def _one_line(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]

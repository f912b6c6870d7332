"""Encoded media, from bytes, to arrays: video by presentation time, audio; beside it images.

Nothing in a file is believed before it is decoded: declared frame counts and sizes are only used to
refuse. Every failure is a `BadSample`.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vidgen.inputs.quarantine import BadSample

VIDEO = ("mp4", "webm", "mkv", "mov", "avi")
IMAGE = ("jpg", "jpeg", "png", "webp")
AUDIO = ("wav", "flac", "mp3", "m4a", "ogg")
AUDIO_RATE = 48_000
HDR = (16, 18)  # transfer characteristics: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG)
# equal on every CPU, and colour at every pixel that is made: without the third, every two share one
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT


# before PyAV 19 a title that is not UTF-8 made a good file unreadable
_OPEN: dict[str, Any] = (
  {} if int(av.__version__.split(".")[0]) > 18 else {"metadata_errors": "ignore"}
)


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


class TooShort(BadSample):
  """A sound clip, or an image, that does not last as long as what is asked of it.

  `duration` is what it lasts, in seconds; of an image 0.
  """

  def __init__(self, reason: str, *, duration: float, shard: str = "", key: str = ""):
    super().__init__(reason, shard=shard, key=key)
    self.duration = duration


@dataclasses.dataclass(frozen=True)
class Span:
  """What is sampled of a clip: `frames` at `fps`, from `draw` in [0, 1] of the slack in time.

  With `spread`, frames of a clip shorter than frames / fps are spread evenly over all of it.
  """

  fps: float
  frames: int
  draw: float
  spread: bool = False

  def rate(self, duration: float) -> float:
    """The frames per second that are sampled of a clip of `duration` seconds."""
    short = self.spread and 0 < duration < self.frames / self.fps
    return self.frames / duration if short else self.fps

  def slack(self, duration: float) -> float:
    """The seconds of a clip of `duration` seconds that are left over."""
    return max(0.0, duration - self.frames / self.fps)

  def fits(self, duration: float) -> bool:
    """Whether a clip of `duration` seconds is long enough."""
    if self.spread and duration > 0:
      return True
    return self.frames == 1 or (self.frames - 1) / self.fps < duration

  def check(self, duration: float) -> None:
    """Raises TooShort where a clip of `duration` seconds is not long enough."""
    if not self.fits(duration):
      reason = f"{duration:.3f} s is too short for {self.frames} frames at {self.fps:g} fps"
      raise TooShort(reason, duration=duration)

  def indices(self, times: np.ndarray, *, duration: float, tick: float) -> np.ndarray:
    """Which frames, shown from `times` [t] on, are on screen at the sampled times; int [frames].

    That is the last frame whose time is not later than the asked one plus half a tick of the
    file's clock: a clock of 1 ms shows the second frame of 30 fps at 33 ms, although 1 / 30 s is
    later.

    Raises:
      TooShort: the clip ends before the last of them.
    """
    if self.frames == 1 and len(times) == 1:
      return np.zeros(1, np.int64)
    self.check(duration)
    start = self.draw * self.slack(duration)
    wanted = start + np.arange(self.frames) / self.rate(duration) + 0.5 * tick
    return np.maximum(np.searchsorted(times, wanted, side="right") - 1, 0)


def fit(width: int | float, height: int, *, cover: tuple[int, int]) -> tuple[int, int]:
  """The (width, height) to which a picture is scaled to cover (height, width) `cover`, no more."""
  scale = max(cover[0] / height, cover[1] / width)
  return max(cover[1], round(width * scale)), max(cover[0], round(height * scale))


def decode_video(
  data: bytes,
  *,
  cover: tuple[int, int] | None = None,
  limits: Limits | None = None,
  span: Span | None = None,
) -> Clip:
  """Frames of the first video stream, turned upright, square pixels, scaled to `cover`.

  With a `span`, only the frames that it may choose are kept, and nothing after them is decoded (the
  packets' times are read first). Scaling is by area averaging down and bicubic up, in one pass with
  the conversion to RGB.

  Raises:
    BadSample: not a video, cut short, no frames, too short for the span (`TooShort`), HDR, or above
      a limit.
  """
  limits = limits or Limits()
  with open_video(data, limits=limits) as (container, stream):
    stamps = frame_stamps(container, stream, limits) if span is not None else None
    if span is None or stamps is None:
      return _decode_frames(container, stream, cover, limits)
    return _decode_span(container, stream, cover, limits, span, stamps)


@contextlib.contextmanager
def open_video(data: bytes, *, limits: Limits) -> Iterator[tuple[Any, Any]]:
  """The container and its first video stream, ready to decode; errors within are BadSample."""
  check_bytes(data, limits)
  try:
    with av.open(io.BytesIO(data), mode="r", **_OPEN) as container:
      if len(container.streams) > limits.max_streams:
        raise BadSample(f"{len(container.streams)} streams, more than {limits.max_streams}")
      if not container.streams.video:
        raise BadSample("no video stream")
      stream = container.streams.video[0]
      check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
      if not stream.time_base:
        raise BadSample("the video stream has no clock")
      stream.codec_context.thread_count = 1  # parallel over samples, not within one
      stream.codec_context.options = {
        "err_detect": "explode",  # else damage is painted over
        "max_pixels": str(limits.max_pixels),  # the size can change within a stream
      }
      yield container, stream
  except (av.error.FFmpegError, EOFError, OverflowError, ValueError) as error:
    raise BadSample(f"not decodable as video: {one_line(error)}") from error


def frame_stamps(container, stream, limits: Limits) -> list[tuple[int, int]] | None:
  """(presentation time, duration) of each frame to come, in order; None where packets lack them."""
  stamps, count = [], 0
  for packet in container.demux(stream):
    count += packet.size > 0
    if not packet.size or packet.is_discard:
      continue
    if packet.pts is None:
      stamps = None
      break
    stamps.append((packet.pts, packet.duration or 0))
    if len(stamps) > limits.max_frames:
      raise BadSample(f"more than {limits.max_frames} frames")
  else:
    if count < stream.frames:  # more than declared is common, less is a file cut short
      raise BadSample(f"{stream.frames} frames are declared, {count} are there")
  container.seek(0, stream=stream, backward=True, any_frame=False)
  return sorted(stamps) if stamps else None


def _clip(frames: list[np.ndarray], stamps: list[int], last: int, stream, *, origin: int) -> Clip:
  """A clip of `frames` at `stamps` ticks; `last` is how long the final frame of the file stays."""
  if not frames:
    raise BadSample("no frames")
  if any(f.shape != frames[0].shape for f in frames):
    raise BadSample("the picture size changes within the clip")
  tick = float(stream.time_base)
  times = (np.asarray(stamps, np.int64) - origin) * tick
  return Clip(np.stack(frames), times, float(times[-1] + last * tick), tick)


def _last_duration(stamps: list[int], stated: int, stream) -> int:
  """Ticks of the last frame: as stated, else as the frame before it, else by the declared rate."""
  if stated > 0:
    return stated
  if len(stamps) > 1:
    return stamps[-1] - stamps[-2]
  rate = stream.average_rate
  return round(1 / (float(rate) * float(stream.time_base))) if rate else 0


def _decode_frames(container, stream, cover, limits: Limits) -> Clip:
  reformatter, last = VideoReformatter(), 0
  frames: list[np.ndarray] = []
  stamps: list[int] = []
  for frame in container.decode(stream):
    _check_frame(frame, len(frames), limits)
    if stamps and frame.pts <= stamps[-1]:
      raise BadSample(f"presentation times do not increase at frame {len(frames)}")
    stamps.append(frame.pts)
    if (stamps[-1] - stamps[0]) * stream.time_base > limits.max_seconds:
      raise BadSample(f"longer than {limits.max_seconds} s")
    last = frame.duration or 0
    frames.append(_to_rgb(frame, reformatter, stream.sample_aspect_ratio, cover, limits))
  last = _last_duration(stamps, last, stream)
  return _clip(frames, stamps, last, stream, origin=stamps[0] if stamps else 0)


def duration_of(stamps: list[tuple[int, int]], stream, limits: Limits) -> float:
  """The seconds from the first frame of `frame_stamps` until the last one goes."""
  pts, tick = [stamp for stamp, _ in stamps], float(stream.time_base)
  last = _last_duration(pts, stamps[-1][1], stream)
  duration = float((np.int64(pts[-1]) - pts[0]) * tick + last * tick)
  if duration > limits.max_seconds:
    raise BadSample(f"longer than {limits.max_seconds} s")
  return duration


def _decode_span(container, stream, cover, limits: Limits, span: Span, stamps) -> Clip:
  tick = float(stream.time_base)
  pts = [stamp for stamp, _ in stamps]
  times = (np.asarray(pts, np.int64) - pts[0]) * tick
  duration = duration_of(stamps, stream, limits)
  chosen = np.unique(span.indices(times, duration=duration, tick=tick))
  wanted = [pts[i] for i in chosen]
  container.seek(wanted[0], stream=stream, backward=True, any_frame=False)
  reformatter, found = VideoReformatter(), {}
  for number, frame in enumerate(container.decode(stream)):
    _check_frame(frame, number, limits)
    if frame.pts in wanted:
      found[frame.pts] = _to_rgb(frame, reformatter, stream.sample_aspect_ratio, cover, limits)
    if frame.pts >= wanted[-1]:
      break
  missing = [stamp for stamp in wanted if stamp not in found]
  if missing:
    raise BadSample(f"the frame at {(missing[0] - pts[0]) * tick:.3f} s cannot be decoded")
  clip = _clip([found[stamp] for stamp in wanted], wanted, 0, stream, origin=pts[0])
  return dataclasses.replace(clip, duration=duration)


def _check_frame(frame, number: int, limits: Limits) -> None:
  if number >= limits.max_frames:
    raise BadSample(f"more than {limits.max_frames} frames")
  if frame.is_corrupt:
    raise BadSample(f"frame {number} is corrupt")
  if frame.pts is None:
    raise BadSample(f"frame {number} has no presentation time")


def square_width(frame, aspect) -> float:
  """The width of a frame, not turned, in as many square pixels as its height counts."""
  return frame.width * float(aspect) if aspect else float(frame.width)


def quarter_turns(frame) -> int:
  """How often a frame is turned by 90 degrees, counter-clockwise, to be upright; 0 to 3."""
  return round(frame.rotation / 90) % 4


def _to_rgb(frame, reformatter, aspect, cover, limits: Limits) -> np.ndarray:
  check_pixels(frame.width, frame.height, limits)
  if frame.color_trc in HDR:
    raise BadSample("HDR video; tone-map it to SDR first")
  turns, square = quarter_turns(frame), square_width(frame, aspect)
  width, height = frame.width, frame.height
  if cover is None:
    width = max(1, round(square))
  else:
    width, height = fit(square, height, cover=cover[::-1] if turns % 2 else cover)
  check_pixels(width, height, limits)  # a thin picture grows when it is scaled to cover
  down = width <= frame.width and height <= frame.height
  kind = Interpolation.AREA if down else Interpolation.BICUBIC
  rgb = reformatter.reformat(
    frame, width=width, height=height, format="rgb24", interpolation=kind | _EXACT, threads=1
  )
  array = rgb.to_ndarray()
  return np.rot90(array, turns) if turns else array


def decode_audio(data: bytes, *, limits: Limits | None = None) -> np.ndarray:
  """The first audio stream, mixed to mono, at 48 kHz; float32 [n] in [-1, 1].

  Raises:
    BadSample: no audio stream, not decodable, or above a limit.
  """
  limits = limits or Limits()
  check_bytes(data, limits)
  try:
    with av.open(io.BytesIO(data), mode="r", **_OPEN) as container:
      if len(container.streams) > limits.max_streams:
        raise BadSample(f"{len(container.streams)} streams, more than {limits.max_streams}")
      if not container.streams.audio:
        raise BadSample("no audio stream")
      # the mean of the channels, where FFmpeg's own mix to mono makes equal channels 3 dB louder
      resampler = av.AudioResampler(format="fltp", rate=AUDIO_RATE)
      parts: list[np.ndarray] = []
      count = 0
      for frame in container.decode(container.streams.audio[0]):
        new = [f.to_ndarray().mean(0) for f in resampler.resample(frame)]
        count += sum(map(len, new))
        if count > limits.max_seconds * AUDIO_RATE:
          raise BadSample(f"longer than {limits.max_seconds} s")
        parts += new
      parts += [f.to_ndarray().mean(0) for f in resampler.resample(None)]
  except (av.error.FFmpegError, EOFError, OverflowError, ValueError) as error:
    raise BadSample(f"not decodable as audio: {one_line(error)}") from error
  if not count:
    raise BadSample("no audio samples")
  return np.clip(np.concatenate(parts), -1.0, 1.0)


def check_bytes(data: bytes, limits: Limits) -> None:
  """Raises BadSample where a file is empty or above the limit."""
  if not data:
    raise BadSample("empty file")
  if len(data) > limits.max_bytes:
    raise BadSample(f"{len(data)} bytes, more than limits.max_bytes {limits.max_bytes}")


def check_pixels(width: int, height: int, limits: Limits) -> None:
  """Raises BadSample where a picture is empty or above the limit."""
  if width <= 0 or height <= 0:
    raise BadSample(f"a picture of {width}x{height}")
  if width * height > limits.max_pixels:
    raise BadSample(f"{width}x{height} is more than limits.max_pixels {limits.max_pixels}")


def one_line(error: Exception) -> str:
  """The kind and the words of an error, cut to 200 characters."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]

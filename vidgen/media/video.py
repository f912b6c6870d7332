"""MP4 files: H.264 video with, where wanted, AAC sound."""

import itertools
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import Flags, OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import (
  ColorPrimaries,
  ColorRange,
  Colorspace,
  ColorTrc,
  VideoReformatter,
)
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Float video in [-1, 1] as bytes, rounded and clipped; bytes pass unchanged."""
  if video.dtype == np.uint8:
    return video
  return np.rint(np.clip(video.astype(np.float32) * 127.5 + 127.5, 0, 255)).astype(np.uint8)


Frames = UInt8[np.ndarray, "t h w 3"]


def write_mp4(
  path: str | Path,
  frames: Frames | Iterable[Frames],
  *,
  fps: float,
  audio: Float[np.ndarray, "n"] | None = None,
  sample_rate: int = 48_000,
  crf: int | None = 18,
  preset: str = "veryfast",
) -> None:
  """Writes an MP4 that players can start before it is whole; the same input gives the same bytes.

  Args:
    frames: RGB; sides must be even, as colour is stored at half resolution (yuv420p, BT.709,
      tagged so), unless nothing is to be lost. Of a long clip, pieces in order, of which no more
      than one is held at a time.
    audio: mono, [-1, 1], at `sample_rate`.
    crf: H.264 quality, 0 (lossless but for colour) to 51; None: lossless RGB, which `vidgen` and
      FFmpeg read, and few players show.
    preset: of x264, "ultrafast" to "veryslow".

  Raises:
    ValueError: no frames, or odd sides.
  """
  pieces = iter([frames] if isinstance(frames, np.ndarray) else frames)
  first = next((piece for piece in pieces if len(piece)), np.zeros((0, 0, 0, 3), np.uint8))
  odd = first.shape[1] % 2 or first.shape[2] % 2
  if not len(first) or (odd and crf is not None):
    raise ValueError(f"video of shape {first.shape}: needs frames, and even height and width")
  # Putting the index in front ("faststart") rereads the file, so this cannot be a stream in memory.
  with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
    container.flags |= Flags.bitexact.value  # no library version in the file
    # In small frames libx264's macroblock tree reads memory that it has not set, and the bytes
    # differ from run to run; so do those of several threads.
    options = {"crf": str(crf or 0), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
    rate = Fraction(fps).limit_denominator(1001)
    codec = "libx264rgb" if crf is None else "libx264"
    picture = container.add_stream(codec, rate=rate, options=options)
    picture.height, picture.width = first.shape[1:3]
    picture.pix_fmt = "rgb24"
    if crf is not None:
      _store_as_yuv(picture)
    # Both streams must exist before the first packet is written.
    sound = None if audio is None else _add_sound(container, sample_rate)
    _encode_frames(container, picture, itertools.chain([first], pieces))
    if sound is not None and audio is not None:
      _encode_sound(container, sound, audio)


def encode_mp4(frames: Frames | Iterable[Frames], **settings) -> bytes:
  """`write_mp4` to bytes; takes the same arguments after the path."""
  with tempfile.TemporaryDirectory(prefix="vidgen-") as folder:
    path = Path(folder, "clip.mp4")
    write_mp4(path, frames, **settings)
    return path.read_bytes()


def _store_as_yuv(stream: VideoStream) -> None:
  stream.pix_fmt = "yuv420p"
  context = stream.codec_context
  context.color_range = ColorRange.MPEG
  context.colorspace = Colorspace.ITU709
  context.color_primaries = ColorPrimaries.BT709
  context.color_trc = ColorTrc.BT709


def _encode_frames(
  container: OutputContainer, stream: VideoStream, pieces: Iterable[Frames]
) -> None:
  reformatter = VideoReformatter()  # one for all frames: setting up the conversion costs the most
  for array in itertools.chain.from_iterable(pieces):
    frame = VideoFrame.from_ndarray(array, format="rgb24")
    if stream.pix_fmt != "rgb24":
      frame = reformatter.reformat(
        frame,
        format=stream.pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
      )
    container.mux(stream.encode(frame))
  container.mux(stream.encode())


def _add_sound(container: OutputContainer, sample_rate: int) -> AudioStream:
  # The layout must be set on the stream: a mono frame alone would come back as stereo. The fast
  # coder needs a quarter of the time and its loss is inaudible at this rate.
  stream = container.add_stream(
    "aac", rate=sample_rate, layout="mono", options={"aac_coder": "fast"}
  )
  stream.bit_rate = 96_000
  return stream


def _encode_sound(container: OutputContainer, stream: AudioStream, audio: np.ndarray) -> None:
  samples = np.ascontiguousarray(np.clip(audio, -1, 1), np.float32)[None]
  frame = AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
  frame.sample_rate, frame.pts = stream.rate, 0
  container.mux(stream.encode(frame))
  container.mux(stream.encode())

"""Videos as data URIs, so that a page plays them without another file.

Tiny videos are enlarged pixel by pixel first: hardware decoders of phones refuse very small frames,
and browsers would blur them.
"""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vidgen.media.pixels import legible_scale
from vidgen.media.video import encode_mp4

TINY = 128  # pixels of the shorter side below which a video is enlarged
POSTER = 512  # pixels of a poster's longer side at most


@dataclasses.dataclass(frozen=True)
class Embedded:
  """A video and its first frame as data URIs, the size it plays at, and how much was enlarged."""

  video: str
  poster: str
  width: int
  height: int
  scale: int

  @property
  def size(self) -> int:
    """Characters that this adds to a page."""
    return len(self.video) + len(self.poster)


def embed_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], *, fps: float | int) -> Embedded:
  """The MP4 file at `path`, whose frames and rate are given; encoded anew only where it is tiny."""
  t, h, w, _ = frames.shape
  scale = legible_scale(h, w, at_least=TINY)
  if scale > 1:
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    mp4 = encode_mp4(frames, fps=fps, crf=16)
  else:
    mp4 = path.read_bytes()
  return Embedded(_uri("video/mp4", mp4), _poster(frames[0]), w * scale, h * scale, scale)


def _poster(frame: UInt8[np.ndarray, "h w 3"]) -> str:
  image, file = Image.fromarray(frame), io.BytesIO()
  image.thumbnail((POSTER, POSTER))
  image.save(file, "JPEG", quality=85)
  return _uri("image/jpeg", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"

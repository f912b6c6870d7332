"""Encoded images, from bytes, to arrays; nothing in a file is believed before it is decoded."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vidgen.inputs.decode import Clip, Limits, check_bytes, check_pixels, fit, one_line
from vidgen.inputs.quarantine import BadSample

ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns below twice it


@contextlib.contextmanager
def open_image(data: bytes, *, limits: Limits) -> Iterator[Image.Image]:
  """The image, of which only the header is read yet; errors within are BadSample."""
  check_bytes(data, limits)
  try:
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    check_pixels(image.width, image.height, limits)
    yield image
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
    raise BadSample(f"not decodable as an image: {one_line(error)}") from error


def decode_image(
  data: bytes, *, cover: tuple[int, int] | None = None, limits: Limits | None = None
) -> Clip:
  """A picture, upright by its EXIF tag, RGB, scaled to `cover`, as a clip of one frame.

  Raises:
    BadSample: not a JPEG, PNG or WebP, cut short, or above a limit.
  """
  limits = limits or Limits()
  with open_image(data, limits=limits) as image:
    turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    upright = (image if turn is None else image.transpose(turn)).convert("RGB")
    if cover is not None:
      size = fit(upright.width, upright.height, cover=cover)
      check_pixels(*size, limits)  # a thin picture grows when it is scaled to cover
      down = size[0] <= upright.width and size[1] <= upright.height
      upright = upright.resize(size, Image.Resampling.BOX if down else Image.Resampling.BICUBIC)
    return Clip(np.asarray(upright)[None], np.zeros(1), float("inf"), 0.0)


def upright_size(image: Image.Image) -> tuple[int, int]:
  """The (width, height) of an opened image, once it is upright."""
  turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
  return (image.height, image.width) if turned else (image.width, image.height)

"""Contact sheets: samples as rows of frames under their captions, as one PNG."""

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidgen.media.pixels import Videos, legible_scale, to_rgb

PAPER, INK = (255, 255, 255), (32, 32, 36)
MARGIN, GAP, BLOCK_GAP = 16, 2, 24  # pixels: around the sheet, between frames, between samples
TEXT, LINE = 14, 19  # pixels: font size, distance of baselines
LARGEST = 192  # pixels: a frame's longer side; larger videos are reduced to it
MOST_LINES = 3


def contact_sheet(
  videos: Videos,
  *,
  captions: Sequence[str] | None = None,
  columns: int = 16,
  across: int = 1,
  frame_size: int = 64,
) -> bytes:
  """Draws videos [n, t, h, w, c], floats in [-1, 1] or uint8, as a PNG: a row of frames a sample.

  Each row stands under its caption, which is wrapped to the row's width. Of more than `columns`
  frames, that many are shown, evenly spaced from the first to the last. `across` samples stand
  beside each other. Tiny frames are enlarged by a whole factor, pixel by pixel, until their shorter
  side has `frame_size` pixels; large ones are reduced. Equal arguments give equal bytes.

  Raises:
    ValueError: no video, no frame, another number of captions than of videos, or what `to_rgb`
      refuses.
  """
  n, t, h, w, _ = videos.shape
  if not n or not t:
    raise ValueError(f"a sheet needs a video with a frame, got shape {videos.shape}")
  if captions is not None and len(captions) != n:
    raise ValueError(f"{len(captions)} captions for {n} videos")
  shown = np.unique(np.linspace(0, t - 1, min(t, columns)).round().astype(int))
  scale = legible_scale(h, w, at_least=frame_size)
  shrink = min(1.0, LARGEST / (max(h, w) * scale))
  size = (max(1, round(w * scale * shrink)), max(1, round(h * scale * shrink)))
  across = min(across, n)
  row_width = len(shown) * (size[0] + GAP) - GAP
  block_width = max(row_width, 160 if captions else 0)  # so that a lone frame has room for words
  font = ImageFont.load_default(TEXT)
  texts = [_wrap(c, font=font, width=block_width) for c in captions or [""] * n]
  # samples that stand beside each other align their frames, whatever the length of their captions
  lines = [max(len(text) for text in texts[i : i + across]) for i in range(0, n, across)]
  words = [LINE * count + 4 if count else 0 for count in lines]
  gap = BLOCK_GAP if captions else GAP * 3
  height = 2 * MARGIN + sum(word + size[1] for word in words) + gap * (len(words) - 1)
  sheet = Image.new(
    "RGB", (2 * MARGIN + across * (block_width + BLOCK_GAP) - BLOCK_GAP, height), PAPER
  )
  draw = ImageDraw.Draw(sheet)
  pixels = to_rgb(videos[:, shown])
  top = MARGIN
  for row, word in enumerate(words):
    for column, i in enumerate(range(row * across, min(n, (row + 1) * across))):
      left = MARGIN + column * (block_width + BLOCK_GAP)
      for line, text in enumerate(texts[i], start=lines[row] - len(texts[i])):
        draw.text((left, top + line * LINE), text, fill=INK, font=font)
      for j, frame in enumerate(pixels[i]):
        picture = Image.fromarray(frame)
        if picture.size != size:
          how = Image.Resampling.NEAREST if shrink == 1 else Image.Resampling.BOX
          picture = picture.resize(size, how)
        sheet.paste(picture, (left + j * (size[0] + GAP), top + word))
    top += word + size[1] + gap
  file = io.BytesIO()
  sheet.save(file, "PNG")
  return file.getvalue()


def write_contact_sheet(
  videos: Videos,
  *,
  path: str | PathLike[str],
  captions: Sequence[str] | None = None,
  columns: int = 16,
  across: int = 1,
  frame_size: int = 64,
) -> None:
  """Writes `contact_sheet` to a file."""
  png = contact_sheet(
    videos, captions=captions, columns=columns, across=across, frame_size=frame_size
  )
  Path(path).write_bytes(png)


def _wrap(text: str, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int):
  """Lines of at most `width` pixels, at most `MOST_LINES`, the last one cut with an ellipsis."""
  lines: list[str] = []
  rest = " ".join(text.split())  # also control characters that part lines
  while rest:
    last = len(lines) == MOST_LINES - 1
    end = _fitting(rest, font=font, width=width)
    if end < len(rest) and last:
      end = max(1, _fitting(rest, font=font, width=width - int(font.getlength("…"))))
      return [*lines, rest[:end].rstrip() + "…"]
    if end < len(rest) and " " in rest[: end + 1]:
      end = rest[: end + 1].rindex(" ")
    lines.append(rest[:end].rstrip())
    rest = rest[end:].lstrip()
  return lines


def _fitting(text: str, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> int:
  """How many leading characters fit into `width` pixels; at least one."""
  low, high = 1, min(len(text), width)  # no character is narrower than a pixel
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
  return low

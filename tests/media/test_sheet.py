"""Contact sheets show every sample, the frames asked for, and the captions."""

import io

import numpy as np
import pytest
from PIL import Image

from vidgen.media.sheet import contact_sheet, write_contact_sheet


def read(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def flat(n: int, t: int, size: int = 16) -> np.ndarray:
  """Every frame has one colour of its own, far from black and white."""
  colours = 40 + np.arange(n * t * 3, dtype=np.uint8).reshape(n, t, 1, 1, 3) % 170
  return np.broadcast_to(colours, (n, t, size, size, 3))


def areas(sheet: np.ndarray, video: np.ndarray) -> list[int]:
  """How many pixels of the sheet have each frame's colour."""
  return [int((sheet == c).all(-1).sum()) for c in video[:, :, 0, 0].reshape(-1, 3)]


@pytest.mark.parametrize("across", [1, 2, 3])
@pytest.mark.parametrize("captions", [None, ["one", "two", "three"]])
def test_every_frame_of_every_sample_is_there_at_full_size(across, captions):
  videos = flat(3, 5)
  sheet = read(contact_sheet(videos, captions=captions, across=across))
  assert areas(sheet, videos) == [64 * 64] * 15


def test_rows_are_samples_and_columns_are_frames():
  videos = flat(2, 3)
  sheet = read(contact_sheet(videos))
  where = np.array(
    [np.argwhere((sheet == c).all(-1)).mean(0) for c in videos[:, :, 0, 0].reshape(6, 3)]
  ).reshape(2, 3, 2)
  assert (np.diff(where[..., 0], axis=0) > 60).all() and not np.diff(where[..., 0], axis=1).any()
  assert (np.diff(where[..., 1], axis=1) > 60).all() and not np.diff(where[..., 1], axis=0).any()


def test_of_many_frames_the_first_the_last_and_even_steps_between_are_shown():
  videos = flat(1, 31)
  found = np.flatnonzero(areas(read(contact_sheet(videos, columns=4)), videos))
  assert found.tolist() == [0, 10, 20, 30]


def test_pixels_are_enlarged_without_blur():
  videos = np.random.default_rng(0).integers(60, 200, (1, 1, 8, 8, 3), dtype=np.uint8)
  sheet = read(contact_sheet(videos))[16:-16, 16:-16]
  np.testing.assert_array_equal(sheet, videos[0, 0].repeat(8, 0).repeat(8, 1))


def test_large_frames_are_reduced():
  sheet = read(contact_sheet(np.zeros((1, 2, 432, 768, 3), np.uint8)))
  assert sheet.shape == (32 + 108, 32 + 2 * 192 + 2, 3)


def test_captions_are_drawn_above_their_row_and_differ():
  videos = np.zeros((1, 4, 16, 16, 3), np.float32)
  one, two = (read(contact_sheet(videos, captions=[c])) for c in ("a red cross", "a blue disc"))
  bare = read(contact_sheet(videos))
  assert one.shape == two.shape and one.shape[0] > bare.shape[0]
  assert (one[: one.shape[0] - 80] < 128).any() and (one != two).any()


def test_a_long_caption_stays_inside_the_sheet_and_has_an_end():
  videos = np.zeros((1, 4, 16, 16, 3), np.float32)
  for caption in ("word " * 500, "w" * 5000, "one\ntwo\r\x00three"):
    sheet = read(contact_sheet(videos, captions=[caption]))
    assert sheet.shape[0] < 200
    assert (sheet[:, -16:] == 255).all() and (sheet[:, :15] == 255).all()


def test_equal_samples_give_equal_bytes_whether_floats_or_uint8(tmp_path):
  videos = flat(2, 3)
  floats = videos.astype(np.float32) / 127.5 - 1
  write_contact_sheet(videos, path=tmp_path / "a.png", captions=["one", "two"])
  assert (tmp_path / "a.png").read_bytes() == contact_sheet(floats, captions=["one", "two"])


def test_a_lone_frame_leaves_room_for_its_caption():
  sheet = read(contact_sheet(flat(1, 1), captions=["a small yellow square"]))
  assert sheet.shape[1] == 160 + 32


def test_wrong_numbers_are_refused():
  with pytest.raises(ValueError, match="1 captions for 2 videos"):
    contact_sheet(flat(2, 3), captions=["one"])
  with pytest.raises(ValueError, match="needs a video"):
    contact_sheet(np.zeros((0, 1, 4, 4, 3), np.uint8))

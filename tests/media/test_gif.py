"""GIFs keep colours, frames and speed; read back with Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from vidgen.media.gif import encode_gif, frame_times, write_gif


def read(data: bytes) -> tuple[np.ndarray, list[int]]:
  """Frames [t, h, w, 3] and their milliseconds."""
  with Image.open(io.BytesIO(data)) as image:
    frames, times = [], []
    for i in range(image.n_frames):
      image.seek(i)
      frames.append(np.asarray(image.convert("RGB")))
      times.append(image.info["duration"])
    return np.stack(frames), times


def few_colours(frames: int = 6) -> np.ndarray:
  palette = np.random.default_rng(0).integers(0, 256, (200, 3), dtype=np.uint8)
  return palette[np.random.default_rng(1).integers(0, 200, (frames, 16, 12))]


def test_up_to_256_colours_are_exact_and_each_pixel_becomes_a_block():
  video = few_colours()
  frames, _ = read(encode_gif(video, fps=8, scale=3))
  np.testing.assert_array_equal(frames, video.repeat(3, axis=1).repeat(3, axis=2))


def test_tiny_videos_are_enlarged_and_large_ones_kept():
  assert read(encode_gif(few_colours(), fps=8))[0].shape == (6, 176, 132, 3)
  large = np.zeros((1, 200, 160, 3), np.uint8)
  assert read(encode_gif(large, fps=8))[0].shape == (1, 200, 160, 3)


def test_many_colours_stay_close_and_a_still_background_does_not_flicker():
  y, x = np.mgrid[0:64, 0:64]
  ground = np.stack([4 * x, 4 * y, 2 * (x + y)], -1).astype(np.uint8)
  video = np.stack([ground] * 5)
  for i in range(5):
    video[i, 10 * i : 10 * i + 10, :10] = (255, 0, 40 * i)
  frames, _ = read(encode_gif(video, fps=8, scale=1))
  error = np.abs(frames.astype(int) - video.astype(int))
  assert error.mean() < 6 and error.max() < 40
  assert (frames[:, :, 20:] == frames[:1, :, 20:]).all()


@pytest.mark.parametrize("fps", [4, 8, 12, 16, 24, 25, 30, 23.976])
def test_no_frame_is_off_by_more_than_half_a_hundredth(fps):
  ends = np.cumsum(frame_times(100, fps=fps))
  np.testing.assert_allclose(ends, 1000 * np.arange(1, 101) / fps, atol=5.001)


def test_times_reach_the_file():
  _, times = read(encode_gif(few_colours(4), fps=8))
  assert times == frame_times(4, fps=8) == [130, 120, 130, 120]


def test_a_frame_that_repeats_is_shown_longer():
  video = few_colours(2)[[0, 0, 1]]
  frames, times = read(encode_gif(video, fps=10))
  assert len(frames) == 2 and times == [200, 100]


def test_floats_and_bytes_give_the_same_file(tmp_path):
  video = few_colours()
  write_gif(video, path=tmp_path / "a.gif", fps=8)
  floats = video.astype(np.float32) / 127.5 - 1
  assert (tmp_path / "a.gif").read_bytes() == encode_gif(floats, fps=8)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(fps):
  with pytest.raises(ValueError, match="fps"):
    encode_gif(few_colours(), fps=fps)


def test_no_frames_are_refused():
  with pytest.raises(ValueError, match="at least one frame"):
    encode_gif(np.zeros((0, 4, 4, 3), np.uint8), fps=8)

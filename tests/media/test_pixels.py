"""Floats, bytes and grey become RGB bytes; tiny frames get a whole factor."""

import numpy as np
import pytest

from vidgen.media.pixels import legible_scale, to_rgb


def test_the_range_of_floats_maps_onto_the_range_of_bytes():
  values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32).reshape(5, 1, 1, 1)
  assert to_rgb(np.repeat(values, 3, -1))[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_bytes_survive_the_way_to_floats_and_back():
  every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  np.testing.assert_array_equal(to_rgb(every / np.float32(127.5) - 1)[..., 0], every[..., 0])


def test_pixels_that_are_not_numbers_are_black():
  video = np.full((1, 1, 1, 3), np.nan, np.float32)
  assert to_rgb(video).max() == 0


def test_grey_is_repeated():
  assert to_rgb(np.full((2, 4, 4, 1), 7, np.uint8)).tolist() == np.full((2, 4, 4, 3), 7).tolist()


@pytest.mark.parametrize(
  "frames", [np.zeros((1, 4, 4, 2), np.uint8), np.zeros((1, 4, 4, 3), np.int32)]
)
def test_other_types_and_channels_are_refused(frames):
  with pytest.raises(ValueError, match="channels|uint8"):
    to_rgb(frames)


def test_scale_is_whole_and_just_enough():
  assert [legible_scale(h, 16, at_least=64) for h in (16, 15, 8)] == [4, 5, 8]
  assert legible_scale(256, 256, at_least=64) == 1

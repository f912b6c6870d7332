"""A folder of samples as one picture: the first ones, read from their videos."""

import io

import numpy as np
import pytest
from PIL import Image
from run_maker import make_samples

from vidgen.errors import DataError
from vidgen.media.picture import samples_picture, write_samples_picture


def test_it_shows_the_frames_of_the_first_samples(tmp_path):
  make_samples(tmp_path / "s", count=3)
  write_samples_picture(tmp_path / "s", path=tmp_path / "new" / "a.png", count=2, across=1)
  picture = np.asarray(Image.open(tmp_path / "new" / "a.png").convert("RGB")).astype(int)
  assert picture.shape[1] == 32 + 8 * 50 - 2
  red = (picture[..., 0] > 150) & (picture[..., 1] < 110) & (picture[..., 2] < 110)
  green = (picture[..., 1] > 120) & (picture[..., 0] < 110) & (picture[..., 2] < 110)
  blue = (picture[..., 2] > 150) & (picture[..., 0] < 110) & (picture[..., 1] < 110)
  assert red.sum() > 500 and green.sum() > 500 and not blue.any()  # the third is blue
  assert red.nonzero()[0].max() < green.nonzero()[0].min()


def test_it_is_a_function_of_the_samples(tmp_path):
  make_samples(tmp_path / "s", count=2)
  assert samples_picture(tmp_path / "s") == samples_picture(tmp_path / "s")
  assert Image.open(io.BytesIO(samples_picture(tmp_path / "s"))).width > 800


def test_damaged_or_no_samples_are_refused(tmp_path):
  make_samples(tmp_path / "s", count=2)
  with pytest.raises(DataError, match="no sample"):
    samples_picture(tmp_path / "s", count=0)
  (tmp_path / "s" / "00001.mp4").write_bytes(b"no video")
  with pytest.raises(DataError, match="00001.mp4"):
    samples_picture(tmp_path / "s")
  assert samples_picture(tmp_path / "s", count=1)

"""Degraded clips: a function of (seed, position), one chain a clip, kernels as they should be."""

import dataclasses

import numpy as np
import pytest
from batches import IMAGE, ONE, take
from shards import jpeg, write_tar

from vidgen.inputs.blur_kernels import bell, sinc
from vidgen.inputs.degradations import (
  Chain,
  DegradationConfig,
  Round,
  _blurring,
  _resampled,
  degrade,
)
from vidgen.inputs.pipeline import make_dataset

CONFIG = DegradationConfig(factor=2.0)
GENERATOR = np.random.default_rng(0)
SIZE = (24, 36)
SHARP = GENERATOR.integers(0, 256, (3, 24, 36, 3), dtype=np.uint8)
SMOOTH = np.broadcast_to(np.linspace(40, 200, 36).astype(np.uint8)[:, None], (3, 24, 36, 3))


def test_a_clip_follows_from_seed_and_position_alone():
  """Whatever the batch around it; another position or seed gives another clip."""
  both = degrade(np.stack([SMOOTH, SHARP]), CONFIG, seed=3, positions=[8, 9])
  alone = degrade(SHARP[None], CONFIG, seed=3, positions=[9])
  assert both.video.shape == (2, 3, 12, 18, 3) and both.video.dtype == np.uint8
  np.testing.assert_array_equal(both.video[1], alone.video[0])
  for seed, position in ((3, 8), (4, 9), (3 + 2**40, 9)):
    other = degrade(SHARP[None], CONFIG, seed=seed, positions=[position])
    assert (other.video != alone.video).any()


def test_frames_share_the_chain_and_not_the_noise():
  """A still clip: its frames differ where there is noise, and are equal where there is none; the
  noise of a frame does not hang on how many came before it being made."""
  still = np.repeat(SMOOTH[:1], 3, axis=0)
  chain = Chain(CONFIG, size=SIZE, seed=0, position=0)
  noisy = chain(still)
  assert (noisy[0] != noisy[1]).any() and (noisy[1] != noisy[2]).any()
  np.testing.assert_array_equal(chain(still[:2]), noisy[:2])
  silent = Round(noise=(0.0, 0.0), shot=(0.0, 0.0))
  quiet = DegradationConfig(first=silent, second=silent)
  for position in range(8):
    made = Chain(quiet, size=SIZE, seed=0, position=position)(still)
    assert (made == made[:1]).all()


def test_two_rounds_and_an_end_in_real_esrgans_order():
  """Blur, resize, noise, JPEG, twice; then the small size, sinc, and JPEG before or after them."""
  words = []
  for position in range(60):
    names = [
      name.split()[0] for name, _ in Chain(CONFIG, size=SIZE, seed=1, position=position).steps
    ]
    resizes = {"area": "resize", "bilinear": "resize", "bicubic": "resize", "shot": "noise"}
    words.append(" ".join(resizes.get(name, name) for name in names))
  whole = {"blur resize noise jpeg blur resize noise jpeg " + end
           for end in ("jpeg resize sinc", "resize sinc jpeg")}  # fmt: skip
  assert whole <= set(words)
  assert all(word.startswith("blur") and word.count("noise") == 2 for word in words)
  assert {word.count("jpeg") for word in words} == {3}
  assert any("resize jpeg" in word or word.endswith("jpeg resize") for word in words)  # no sinc


def test_clean_and_artifacts_are_the_downscaled_clip():
  """A row for the autoencoder, or a clean one, is the mean of pixels; as often as is said."""
  config = DegradationConfig(clean=0.3, artifacts=0.5)
  low = degrade(np.stack([SHARP[:1]] * 200), config, seed=5, positions=range(200))
  mean = SHARP[0].reshape(12, 2, 18, 2, 3).mean(axis=(1, 3))
  near = np.abs(low.video[:, 0] - mean).max(axis=(1, 2, 3)) <= 0.51
  assert near[low.artifacts].all() and 0.4 < low.artifacts.mean() < 0.6
  assert 0.7 < near.mean() < 0.9


def test_kernels_sum_to_one_and_have_their_shape():
  """Along its angle a bell has the first sigma, across it the second; a plateau is flatter in the
  middle; a sinc passes slow waves and stops those above its cutoff."""
  kernel = bell(21, sigmas=(3.0, 1.0), angle=0.0, exponent=1.0, plateau=False)
  place = np.arange(21) - 10
  assert kernel.sum() == pytest.approx(1)
  assert (kernel.sum(0) @ place**2) == pytest.approx(9, rel=0.03)  # columns: along x
  assert (kernel.sum(1) @ place**2) == pytest.approx(1, rel=0.03)
  turned = bell(21, sigmas=(3.0, 1.0), angle=np.pi / 2, exponent=1.0, plateau=False)
  np.testing.assert_allclose(turned, kernel.T, atol=1e-12)
  flat = bell(21, sigmas=(3.0, 3.0), angle=0.3, exponent=2.0, plateau=True)
  gaussian = bell(21, sigmas=(3.0, 3.0), angle=0.3, exponent=1.0, plateau=False)
  assert flat[10, 11] / flat[10, 10] > gaussian[10, 11] / gaussian[10, 10]
  low_pass = sinc(21, cutoff=1.2)
  response = np.abs([low_pass.sum(0) @ np.cos(w * place) for w in (0.0, 0.6, 2.0, 3.0)])
  assert response[0] == pytest.approx(1) and response[1] > 0.9 and (response[2:] < 0.1).all()


def test_a_bessel_function_is_that_of_scipy():
  """The sinc's values, before they are divided by their sum, are those of scipy's J1."""
  special = pytest.importorskip("scipy.special")
  place = np.arange(21) - 10
  r = np.hypot(*np.meshgrid(place, place))
  with np.errstate(invalid="ignore"):
    wanted = 2.5 * special.j1(2.5 * r) / (2 * np.pi * r)
  wanted[10, 10] = 2.5**2 / (4 * np.pi)
  np.testing.assert_allclose(sinc(21, cutoff=2.5), wanted / wanted.sum(), atol=1e-12)


def test_blurring_is_convolution_with_a_mirrored_border():
  """The same as scipy's direct convolution, for a kernel that is not symmetric."""
  ndimage = pytest.importorskip("scipy.ndimage")
  kernel = GENERATOR.random((7, 7))
  frame = GENERATOR.random((19, 23, 3)).astype(np.float32)
  blurred = _blurring(kernel)(frame, GENERATOR)
  for c in range(3):
    wanted = ndimage.convolve(frame[..., c], kernel, mode="reflect")
    np.testing.assert_allclose(blurred[..., c], wanted, atol=2e-5)


@pytest.mark.parametrize("cubic", [False, True])
def test_resampling_keeps_ramps_where_they_are(cubic):
  """A ramp stays the same ramp at pixel centres, larger or smaller: nothing is shifted."""
  ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 1, 3))
  for length in (12, 36, 31):
    made = _resampled(ramp, length, axis=0, cubic=cubic)[:, 0, 0]
    wanted = (np.arange(length) + 0.5) * 24 / length - 0.5
    inside = (wanted > 2) & (wanted < 21)
    np.testing.assert_allclose(made[inside], wanted[inside], atol=0.06 if cubic else 1e-5)


def test_a_codec_may_take_the_place_of_the_last_jpeg():
  """Sizes, odd ones too, are kept; worse quality is further from the clip."""
  still = Round(
    blur=0.0, resize=(0.0, 0.0, 1.0), noise=(0.0, 0.0), shot=(0.0, 0.0), jpeg=(100.0, 100.0)
  )
  clip = np.repeat(SHARP[:1, :22, :22], 2, axis=0)
  errors = []
  for crf in (10.0, 45.0):
    config = DegradationConfig(
      factor=2.0, first=still, second=still, final_sinc=0.0, codec=1.0, crf=(crf, crf)
    )
    made = degrade(clip[None], config, seed=0, positions=[2])
    assert made.video.shape == (1, 2, 11, 11, 3)
    small = clip.reshape(2, 11, 2, 11, 2, 3).mean(axis=(2, 4))
    errors.append(np.abs(made.video[0] - small).mean())
  assert errors[0] < errors[1]


def test_a_batch_has_its_small_copy(tmp_path):
  """ "low" is of the very pixels of "video", mirrored with them, and of the position, not of the
  batch; without the field there is none."""
  ramp = np.linspace(20, 220, 32).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
  members = [("a.jpg", jpeg(ramp)), ("a.txt", b"x")]
  write_tar(tmp_path / "image" / "train" / "0.tar", members)

  def batches(size, count, degradation):
    config = dataclasses.replace(ONE, buckets=(IMAGE,), degradation=degradation, flip=0.5)
    return take(make_dataset(config, str(tmp_path), batch_size=size, seed=0), count)

  clean = batches(8, 1, DegradationConfig(clean=1.0))[0]
  low, video = clean["low"], clean["video"]
  assert low.shape == (8, 1, 8, 8, 3) and low.dtype == np.float32
  left = video[:, 0, :, 0].mean(axis=(1, 2))
  assert (left < 0).any() and (left > 0).any()  # some are mirrored
  np.testing.assert_allclose(low, video.reshape(8, 1, 8, 2, 8, 2, 3).mean(axis=(3, 5)), atol=0.01)
  assert clean["artifacts"].shape == (8,) and not clean["artifacts"].any()
  assert batches(8, 1, DegradationConfig(artifacts=1.0))[0]["artifacts"].all()
  whole = batches(8, 1, CONFIG)[0]["low"]
  parts = np.concatenate([batch["low"] for batch in batches(2, 4, CONFIG)])
  np.testing.assert_array_equal(parts, whole)
  assert len(np.unique(whole.reshape(8, -1), axis=0)) == 8
  assert "low" not in batches(1, 1, None)[0]
  with pytest.raises(ValueError, match="does not divide 16 x 16"):
    dataclasses.replace(ONE, degradation=DegradationConfig(factor=1.875))


def test_what_makes_no_sense_is_refused():
  """A factor that does not divide the bucket, and odds or ranges that are none."""
  assert DegradationConfig(factor=1.875).low_size(1080, 1920) == (576, 1024)
  with pytest.raises(ValueError, match="does not divide 1080 x 1916"):
    DegradationConfig(factor=1.875).low_size(1080, 1916)
  with pytest.raises(ValueError, match="artifacts"):
    DegradationConfig(artifacts=1.5)
  with pytest.raises(ValueError, match="jpeg"):
    Round(jpeg=(95.0, 30.0))
  with pytest.raises(ValueError, match="odd"):
    DegradationConfig(kernel_sizes=(6, 21))

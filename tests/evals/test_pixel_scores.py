"""PSNR and SSIM are those of torchmetrics and scikit-image; flicker and seams are seen."""

import math
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.metric_inputs import clips

from vidgen.errors import DataError
from vidgen.evals import pixels
from vidgen.evals.pixels import (
  error_flicker,
  frame_difference,
  frame_errors,
  l1,
  l2,
  psnr,
  psnr_of_mean_error,
  seam_error,
  ssim,
)

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz")
PEAKS = {"uint8": 255.0, "float32": 1.0}


def pairs(score, fixture, **options):
  return {
    name: (score(*clip, peak=PEAKS[name], **options), np.mean(FIXTURE[f"{fixture}/{name}"]))
    for name, clip in clips().items()
  }


def case(module, package, call, config, score, fixture, **options):
  reference = f"{package}=={FIXTURE[f'versions/{package}']}, {call}"
  run = lambda: pairs(score, fixture, **options)  # noqa: E731 (one line)
  return Case(f"evals.pixels.{module}", reference, config, 1e-6, run)


TORCH, SCIKIT = "torchmetrics", "scikit-image"
PSNR, SSIM = "peak_signal_noise_ratio", "structural_similarity_index_measure"
CASES = [
  case("psnr", TORCH, PSNR, "mean over frames", psnr, "psnr/frames"),
  case("psnr_of_mean_error", TORCH, PSNR, "all frames at once", psnr_of_mean_error, "psnr/all"),
  case("ssim", TORCH, SSIM, "mirrored border", ssim, "ssim/torchmetrics/reflect", border="reflect"),
  case("ssim", TORCH, SSIM, "whole windows", ssim, "ssim/torchmetrics/valid"),
  case("ssim", SCIKIT, "structural_similarity", "mean over RGB", ssim, "ssim/skimage/rgb"),
  case("ssim", SCIKIT, "structural_similarity", "gray", ssim, "ssim/skimage/gray", channels="gray"),
]


@pytest.mark.parametrize("parity", CASES, ids=lambda c: f"{c.module} {c.reference} {c.config}")
def test_equals_other_libraries(parity):
  check(parity)


@pytest.mark.parametrize(
  "wrong",
  [("SIGMA", 1.3), ("RADIUS", 3), ("K1", 0.03), ("K2", 0.01)],
  ids=str,
)
def test_another_window_or_constant_of_ssim_is_told_apart(monkeypatch, wrong):
  monkeypatch.setattr(pixels, *wrong)
  pixels._window.cache_clear()
  found = measure(pairs(ssim, "ssim/skimage/rgb")).relative
  monkeypatch.undo()
  pixels._window.cache_clear()
  assert found > 1e-5


def test_the_variants_differ():
  assert measure(pairs(ssim, "ssim/skimage/gray")).relative > 1e-4
  assert measure(pairs(ssim, "ssim/torchmetrics/reflect")).relative > 1e-4
  assert measure(pairs(psnr, "psnr/all")).relative > 1e-2


def clip(value=0.0, frames=4):
  return np.full((frames, 12, 16, 3), value, np.float32)


def test_psnr_of_a_known_error():
  a, b = clip(), clip(0.1)
  np.testing.assert_allclose(psnr(a, b, peak=1), 20, atol=1e-5)
  np.testing.assert_allclose(psnr(a, b, peak=2), 20 + 20 * math.log10(2), atol=1e-5)
  bytes_off_by_one = np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 4, 4, 3), np.uint8)
  np.testing.assert_allclose(psnr(*bytes_off_by_one, peak=255), 20 * math.log10(255))


def test_bytes_do_not_wrap_round():
  a, b = np.zeros((2, 12, 12, 1), np.uint8), np.full((2, 12, 12, 1), 200, np.uint8)
  assert (frame_errors(a, b) == 200**2).all() and l1(a, b, peak=255) == 200 / 255
  assert frame_difference(np.concatenate([a[:1], b[:1]]), peak=255) == 200 / 255


def test_frames_without_error_follow_the_rule_that_is_named():
  a, b = clip(), clip()
  b[1:] = 0.1
  assert psnr(a, b, peak=1) == math.inf
  np.testing.assert_allclose(psnr(a, b, peak=1, exact="cap"), (100 + 3 * 20) / 4, atol=1e-5)
  np.testing.assert_allclose(psnr(a, b, peak=1, exact="skip"), 20, atol=1e-5)
  assert math.isnan(psnr(a, a, peak=1, exact="skip"))
  assert psnr_of_mean_error(a, a, peak=1) == math.inf
  assert np.isfinite(psnr_of_mean_error(a, b, peak=1))


def test_the_mean_of_ratios_is_not_the_ratio_of_the_mean():
  a, b = clip(), clip(0.01)
  b[0] = 0.5
  assert psnr(a, b, peak=1) > psnr_of_mean_error(a, b, peak=1) + 10


def test_equal_clips_are_alike_and_worse_ones_less():
  rng = np.random.default_rng(0)
  a = rng.random((2, 20, 20, 3))
  noise = rng.normal(size=a.shape)
  np.testing.assert_allclose(ssim(a, a, peak=1), 1, rtol=1e-12)
  for score in (lambda b: ssim(a, b, peak=1), lambda b: psnr(a, b, peak=1)):
    found = [score(a + s * noise) for s in (0.01, 0.1, 0.5)]
    assert found == sorted(found, reverse=True)


def test_l1_and_l2_are_shares_of_the_peak():
  a, b = clip(-1), clip(1)
  assert l1(a, b, peak=2) == l2(a, b, peak=2) == 1
  np.testing.assert_allclose(l2(clip(), clip(0.5), peak=2), 1 / 16)


def test_flicker_is_of_the_error_and_not_of_the_motion():
  rng = np.random.default_rng(1)
  a = rng.random((4, 12, 12, 3)).astype(np.float32)
  np.testing.assert_allclose(error_flicker(a, a + np.float32(0.25), peak=1), 0, atol=1e-7)
  b = a + np.array([0, 0.5, 0, 0.5], np.float32)[:, None, None, None]
  np.testing.assert_allclose(error_flicker(a, b, peak=1), 0.5, rtol=1e-6)
  assert frame_difference(clip(), peak=1) == 0 < frame_difference(a, peak=1)


@pytest.mark.parametrize("axis", ["t", "h", "w"])
def test_a_seam_is_seen_where_it_is_and_nowhere_else(axis):
  rng = np.random.default_rng(2)
  a = rng.random((12, 12, 12, 3))
  b = a + 0.001 * rng.normal(size=a.shape)
  place = [slice(None)] * 4
  place["thw".index(axis)] = slice(6, None)
  b[tuple(place)] += 0.1
  found = seam_error(a, b, axis=axis, seams=[6], peak=1)
  np.testing.assert_allclose(found["excess"], 0.1, atol=0.005)
  assert abs(found["at_seams"] - found["elsewhere"] - found["excess"]) < 1e-12
  assert seam_error(a, b, axis=axis, seams=[5, 7], peak=1)["excess"] < 0
  others = [other for other in "thw" if other != axis]
  for other in others:
    assert abs(seam_error(a, b, axis=other, seams=[6], peak=1)["excess"]) < 0.001


def test_what_cannot_be_compared_is_refused():
  a = clip()
  with pytest.raises(DataError, match=r"one shape and dtype.*float32 \[4, 12, 16, 3\] and uint8"):
    psnr(a, a.astype(np.uint8), peak=1)
  with pytest.raises(DataError, match="one shape"):
    l1(a, a[:2], peak=1)
  with pytest.raises(DataError, match="not finite"):
    l2(a, clip(np.nan), peak=1)
  with pytest.raises(DataError, match="without a pixel"):
    psnr(a[:0], a[:0], peak=1)
  with pytest.raises(DataError, match="11x11 pixels or more, not 8x16"):
    ssim(a[:, :8], a[:, :8], peak=1)
  with pytest.raises(DataError, match="only RGB is made gray"):
    ssim(a[..., :1], a[..., :1], peak=1, channels="gray")
  for function in (frame_difference, lambda x, peak: error_flicker(x, x, peak=peak)):
    with pytest.raises(DataError, match="a clip of one frame"):
      function(a[:1], peak=1)
  with pytest.raises(DataError, match="begins at 12 of 12"):
    seam_error(a, a, axis="h", seams=[12], peak=1)
  with pytest.raises(DataError, match="0 seams among 11"):
    seam_error(a, a, axis="h", seams=[], peak=1)

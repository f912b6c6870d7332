"""Every kernel equals the library it is named after: golden arrays of torch, Pillow itself."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from conformance import Case, check
from fixtures.metric_inputs import RESIZED as SIZES
from fixtures.random_weights import draw
from PIL import Image

from vidgen.evals.resize import KERNELS, centre_crop, matrix, resize, short_side

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz")
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def name(kernel, sizes):
  return f"resize/{kernel}/{'x'.join(map(str, sizes))}"


def image(sizes):
  return draw(f"image {sizes[0]}x{sizes[1]}", [2, *sizes[:2], 3])


def resized(kernel):
  return {
    str(s): (resize(image(s), height=s[2], width=s[3], kernel=kernel), FIXTURE[name(kernel, s)])
    for s in SIZES
  }


def case(kernel, call):
  module = f"evals.resize, {kernel}"
  sizes = "up, down, odd and even sizes"
  return Case(
    module, f"torch=={FIXTURE['versions/torch']}, {call}", sizes, 2e-6, lambda: resized(kernel)
  )


CASES = [
  case("bilinear", "interpolate bilinear"),
  case("bilinear_aligned", "interpolate bilinear, align_corners"),
  case("bicubic", "interpolate bicubic"),
  case("bilinear_antialias", "interpolate bilinear, antialias"),
  case("bicubic_antialias", "interpolate bicubic, antialias"),
  Case(
    "evals.resize, tf1_bilinear",
    f"torch-fidelity=={FIXTURE['versions/torch-fidelity']}, its interpolation like TensorFlow 1",
    "up, down, odd and even sizes",
    2e-6,
    lambda: resized("tf1_bilinear"),
  ),
]


@pytest.mark.parametrize("parity", CASES, ids=lambda c: c.module.split(", ")[1])
def test_equals_the_library_it_is_named_after(parity):
  check(parity)


@pytest.mark.parametrize("kernel", ["bilinear", "bilinear_aligned"])
def test_another_rule_for_corners_is_told_apart(kernel):
  wrong = {
    size: (ours, FIXTURE[name("tf1_bilinear", s)])
    for s, (size, (ours, _)) in zip(SIZES, resized(kernel).items(), strict=True)
  }
  with pytest.raises(AssertionError):
    check(Case("mutation", "TensorFlow 1", "", 1e-2, lambda: wrong))


def test_tf1_bilinear_is_the_scalar_formula():
  x = draw("tf1", [5, 7, 1])
  got = np.asarray(resize(x, height=8, width=4, kernel="tf1_bilinear"))
  for i in range(8):
    for j in range(4):
      y, z = i * 5 / 8, j * 7 / 4
      top, left = math.floor(y), math.floor(z)
      below, right = min(top + 1, 4), min(left + 1, 6)
      above = x[top, left] + (z - left) * (x[top, right] - x[top, left])
      under = x[below, left] + (z - left) * (x[below, right] - x[below, left])
      np.testing.assert_allclose(got[i, j], above + (y - top) * (under - above), atol=1e-6)


@pytest.mark.parametrize("kind", sorted(PILLOW))
@pytest.mark.parametrize("sizes", [(64, 48, 20, 31), (33, 33, 50, 70), (300, 200, 24, 9)], ids=str)
def test_bytes_are_pillows_very_bytes(kind, sizes):
  h, w, height, width = sizes
  x = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
  x[: h // 2, : w // 2] = np.where(x[: h // 2, : w // 2] > 127, 255, 0)  # overshoots are clipped
  # In two calls: Pillow 13 takes the height first where it shrinks much more than the width.
  rows = Image.fromarray(x).resize((width, h), PILLOW[kind])
  want = np.asarray(rows.resize((width, height), PILLOW[kind]))
  got = np.asarray(resize(x, height=height, width=width, kernel=f"pil_{kind}"))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", sorted(PILLOW))
def test_antialiased_floats_equal_pillows(kind):
  x = draw("float image", [40, 30], scale=50, offset=128)
  want = np.asarray(Image.fromarray(x).resize((11, 17), PILLOW[kind]))
  got = resize(x[..., None], height=17, width=11, kernel=f"{kind}_antialias")
  np.testing.assert_allclose(got[..., 0], want, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_plain_image_stays_plain_and_an_equal_size_changes_nothing(kernel):
  grey = np.full((2, 9, 6, 3), 77, np.uint8)
  resized = np.asarray(resize(grey, height=14, width=5, kernel=kernel))
  assert resized.shape == (2, 14, 5, 3)
  np.testing.assert_allclose(resized, 77, atol=1e-4)
  x = np.random.default_rng(1).integers(0, 256, (9, 6, 3), dtype=np.uint8)
  np.testing.assert_allclose(resize(x, height=9, width=6, kernel=kernel), x, atol=1e-4)


@pytest.mark.parametrize("kernel", ["tf1_bilinear", "pil_bicubic"])
def test_compiled_or_not_it_is_the_same(kernel):
  x = np.random.default_rng(2).integers(0, 256, (2, 12, 10, 3), dtype=np.uint8)
  run = lambda y: resize(y, height=7, width=16, kernel=kernel)  # noqa: E731 (one line)
  np.testing.assert_allclose(jax.jit(run)(x), run(x), atol=2e-5)


def test_short_sides_and_crops_round_as_their_origins_do():
  assert short_side(480, 853, size=224) == (224, 398)
  assert short_side(480, 853, size=224, rounding="up") == (224, 399)
  assert short_side(853, 480, size=224) == (398, 224)
  x = np.arange(7 * 9).reshape(7, 9, 1)
  assert centre_crop(x, height=4, width=4)[0, 0, 0] == 2 * 9 + 2  # 1.5 goes to 2, 2.5 to 2
  assert centre_crop(x, height=4, width=4, rounding="down")[0, 0, 0] == 1 * 9 + 2
  with pytest.raises(ValueError, match="no crop of 8x8 in images of 7x9"):
    centre_crop(x, height=8, width=8)


def test_clips_preprocessing_of_an_image_is_pillows():
  x = np.random.default_rng(3).integers(0, 256, (60, 45, 3), dtype=np.uint8)
  want = np.asarray(Image.fromarray(x).resize((32, 42), Image.Resampling.BICUBIC))[5:37]
  height, width = short_side(*x.shape[:2], size=32)
  found = centre_crop(
    resize(x, height=height, width=width, kernel="pil_bicubic"), height=32, width=32
  )
  np.testing.assert_array_equal(found, want)


def test_matrices_are_shared_and_cannot_be_written():
  assert matrix(8, 5, "bicubic") is matrix(8, 5, "bicubic")
  with pytest.raises(ValueError, match="read-only"):
    matrix(8, 5, "bicubic")[0, 0] = 1


def test_unknown_kernels_and_floats_for_bytes_are_refused():
  with pytest.raises(ValueError, match="pil_bicubic resizes uint8, not float32"):
    resize(np.zeros((4, 4, 3), np.float32), height=2, width=2, kernel="pil_bicubic")

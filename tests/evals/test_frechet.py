"""The Frechet distance is that of torchmetrics, torch-fidelity and scipy, and of closed forms."""

from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.metric_inputs import SETS, features

from vidgen.errors import DataError
from vidgen.evals.frechet import frechet_distance, gaussian_distance
from vidgen.evals.moments import moments_of

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz")


def distances(reference, divisor):
  return {
    name: (
      frechet_distance(*(moments_of(features(name, i)) for i in (0, 1)), divisor=divisor),
      FIXTURE[f"frechet/{reference}/{divisor}/{name}"],
    )
    for name in SETS
    if name != "alike"  # of nothing but rounding there is no relative error
  }


def case(reference, call, divisor):
  return Case(
    "evals.frechet.frechet_distance",
    f"{reference}=={FIXTURE[f'versions/{reference}']}, {call}",
    f"N above and below the width, divisor {divisor}",
    1e-6,
    lambda: distances(reference, divisor),
  )


CASES = [
  case("torchmetrics", "_compute_fid", "n-1"),
  case("torchmetrics", "_compute_fid", "n"),
  case("torch-fidelity", "fid_statistics_to_metric", "n-1"),
  case("scipy", "linalg.sqrtm", "n-1"),
  case("scipy", "linalg.sqrtm", "n"),
]


@pytest.mark.parametrize("parity", CASES, ids=lambda c: f"{c.reference} {c.config[-3:]}")
def test_equals_other_libraries(parity):
  check(parity)


def test_the_other_divisor_is_told_apart():
  wrong = {
    name: (ours, FIXTURE[f"frechet/scipy/n/{name}"])
    for name, (ours, _) in distances("scipy", "n-1").items()
  }
  assert measure(wrong).relative > 1e-3


@pytest.mark.parametrize("rank", [2, 9, 20])
def test_covariances_that_commute_have_a_closed_form(rank):
  rng = np.random.default_rng(rank)
  basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
  a, b = rng.uniform(0.1, 5, (2, 20))
  a[rank:], b[: rank // 2] = 0, 0
  mean = rng.normal(size=20)
  got = gaussian_distance(mean, basis * a @ basis.T, np.zeros(20), basis * b @ basis.T)
  want = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_gaussians_of_one_dimension():
  one = np.ones(1), 4 * np.ones((1, 1))
  np.testing.assert_allclose(gaussian_distance(*one, -one[0], 9 * np.ones((1, 1))), 4 + 1)


def test_equal_sets_have_no_distance():
  x = moments_of(features("alike", 0))
  for reference in ("torchmetrics", "torch-fidelity", "scipy"):
    theirs = FIXTURE[f"frechet/{reference}/n-1/alike"]
    assert abs(frechet_distance(x, x) - theirs) < 1e-12 * np.trace(x.covariance())


def test_order_has_no_meaning():
  x = features("few_samples", 0)
  a, mixed = moments_of(x), moments_of(np.random.default_rng(0).permutation(x))
  other = moments_of(features("few_samples", 1))
  assert abs(frechet_distance(a, a)) < 1e-12 * np.trace(a.covariance())  # of less than full rank
  assert frechet_distance(a, other) == frechet_distance(mixed, other)
  np.testing.assert_allclose(frechet_distance(a, other), frechet_distance(other, a), rtol=1e-12)


def test_more_noise_and_more_shift_are_farther():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(400, 8)).astype(np.float32)
  real = moments_of(x)
  noise = rng.normal(size=x.shape).astype(np.float32)
  by_noise = [frechet_distance(real, moments_of(x + s * noise)) for s in (0, 0.2, 0.5, 1, 2)]
  by_shift = [frechet_distance(real, moments_of(x + np.float32(s))) for s in (0, 0.5, 1, 2)]
  assert by_noise == sorted(by_noise) and by_shift == sorted(by_shift)
  np.testing.assert_allclose(by_shift[1:], 8 * np.square([0.5, 1, 2]), rtol=1e-9)


def test_few_samples_of_one_distribution_seem_far_apart():
  """The bias for which small sets are refused elsewhere."""
  rng = np.random.default_rng(4)
  draw = lambda n: moments_of(rng.normal(size=(n, 32)).astype(np.float32))  # noqa: E731 (one line)
  found = [frechet_distance(draw(n), draw(n)) for n in (40, 160, 640, 2560)]
  assert found == sorted(found, reverse=True) and found[0] > 20 * found[-1]


def test_the_bias_is_as_large_as_the_document_says():
  rng = np.random.default_rng(0)
  draw = lambda n: moments_of(  # noqa: E731 (one line)
    (rng.standard_normal((n, 400)) * np.sqrt(30)).astype(np.float32)
  )
  for count, distance in ((64, 16505), (2048, 1182)):
    assert frechet_distance(draw(count), draw(count)) == pytest.approx(distance, abs=1)


def test_one_sample_and_other_widths_are_refused():
  x = features("alike", 0)
  with pytest.raises(DataError, match="two samples or more"):
    frechet_distance(moments_of(x[:1]), moments_of(x))
  with pytest.raises(ValueError, match="widths 64 and 3"):
    frechet_distance(moments_of(x), moments_of(x[:, :3]))

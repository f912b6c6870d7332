"""MMD is that of torch-fidelity and scikit-learn; unbiased where it says so, and never clamped."""

from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.metric_inputs import features

from vidgen.errors import DataError
from vidgen.evals import mmd
from vidgen.evals.mmd import JEDI, Kernel, bootstrap_mmd2, jedi, mmd2, subset_mmd2

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz")
NAMES = ("full_rank", "few_of_one", "alike")


def sets(name):
  return features(name, 0), features(name, 1)


def subset_pairs(**options):
  pairs = {}
  for name in NAMES:
    got = subset_mmd2(*sets(name), subsets=20, size=24, **options)
    pairs[name] = ([got.mean, got.std], FIXTURE[f"kid/{name}"])
  return pairs


def whole_pairs(**options):
  pairs = {}
  for name in NAMES:
    x, y = sets(name)
    n = min(len(x), len(y))
    pairs[name] = (mmd2(x[:n], y[:n], **options), FIXTURE[f"mmd/unbiased/{name}"])
  return pairs


def jedi_pairs():
  return {name: (jedi(*sets(name)), FIXTURE[f"mmd/jedi/{name}"]) for name in NAMES}


FIDELITY = f"torch-fidelity=={FIXTURE['versions/torch-fidelity']}"
SCIKIT = f"scikit-learn=={FIXTURE['versions/scikit-learn']}"
ROWS = [
  ("subset_mmd2", f"{FIDELITY}, kid_features_to_metric", "20 subsets of 24", subset_pairs),
  ("mmd2", f"{FIDELITY}, kernel_mmd", "whole sets, unbiased", whole_pairs),
  ("jedi", f"{SCIKIT}, polynomial_kernel", "degree 2, coef0 0, biased", jedi_pairs),
]
CASES = [Case(f"evals.mmd.{name}", ref, config, 1e-6, run) for name, ref, config, run in ROWS]


@pytest.mark.parametrize("parity", CASES, ids=lambda c: c.module.split(".")[-1])
def test_equals_other_libraries(parity):
  check(parity)


@pytest.mark.parametrize(
  "wrong",
  [{"kernel": JEDI}, {"kernel": Kernel(gamma=1.0)}, {"kernel": Kernel(coef0=0.0)},
   {"estimator": "biased"}],
  ids=str,
)  # fmt: skip
def test_another_kernel_or_estimator_is_told_apart(wrong):
  assert measure(whole_pairs(**wrong)).relative > 1e-2


def test_another_seed_draws_other_subsets():
  assert measure(subset_pairs(seed=0)).relative > 1e-2


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_equals_the_sum_over_pairs(estimator):
  x, y = (s[:7] if i else s[:5] for i, s in enumerate(sets("full_rank")))
  kernel = lambda a, b: (float(a.astype(float) @ b) / len(a) + 1) ** 3  # noqa: E731 (one line)

  def within(z):
    own = estimator == "biased"
    pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if own or i != j]
    return np.mean(pairs)

  want = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
  np.testing.assert_allclose(mmd2(x, y, estimator=estimator), want, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch):
  x, y = sets("full_rank")
  whole = [mmd2(x, y), jedi(x, y), bootstrap_mmd2(x, y, resamples=20).low]
  monkeypatch.setattr(mmd, "BLOCK", 7)
  np.testing.assert_allclose(
    [mmd2(x, y), jedi(x, y), bootstrap_mmd2(x, y, resamples=20).low], whole, rtol=1e-10
  )


def test_of_one_distribution_it_is_zero_on_average_and_often_negative():
  rng = np.random.default_rng(0)
  pairs = rng.normal(size=(200, 2, 40, 6)).astype(np.float32)
  found = np.array([mmd2(x, y) for x, y in pairs])
  assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))
  assert 0.2 < np.mean(found < 0) < 0.9
  biased = np.array([mmd2(x, y, estimator="biased") for x, y in pairs])
  assert biased.mean() > 10 * found.std() / np.sqrt(len(found))


def test_the_bootstrap_is_centred_repeats_and_covers_the_truth():
  rng = np.random.default_rng(1)
  shift, covered = 0.5, 0
  kernel = Kernel(degree=1, coef0=0.0)  # |difference of means|^2 / d, whose truth is known
  for seed in range(40):
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = rng.normal(size=(50, 4)).astype(np.float32) + np.float32(shift)
    found = bootstrap_mmd2(x, y, resamples=200, seed=seed, kernel=kernel)
    assert found.low < found.value < found.high
    covered += found.low <= shift**2 <= found.high
  assert covered >= 33
  assert found == bootstrap_mmd2(x, y, resamples=200, seed=39, kernel=kernel)


def test_the_interval_of_tiny_sets_is_finite():
  """Of three samples every ninth resample is one of them three times, which makes no pair."""
  x, y = (draw.astype(np.float32) for draw in np.random.default_rng(5).normal(size=(2, 3, 4)))
  found = bootstrap_mmd2(x, y)
  assert np.isfinite([found.low, found.high]).all() and found.low < found.high


def test_order_does_not_matter_and_corruption_is_seen():
  x, y = sets("full_rank")
  mixed = np.random.default_rng(2).permutation(x)
  np.testing.assert_allclose(mmd2(mixed, y), mmd2(x, y), rtol=1e-10)
  noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
  found = [mmd2(x, x + s * noise) for s in (0.3, 1, 3)]
  assert found == sorted(found)


def test_too_few_samples_are_refused():
  x, y = sets("full_rank")
  with pytest.raises(DataError, match="MMD needs 1000 samples or more in each set, one has 300"):
    subset_mmd2(x, y)
  with pytest.raises(DataError, match="MMD needs 2 samples"):
    mmd2(x[:1], y)

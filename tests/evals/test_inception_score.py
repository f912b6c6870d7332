"""The Inception Score is torch-fidelity's for images and StyleGAN-V's for video."""

from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.metric_inputs import logits

from vidgen.errors import DataError
from vidgen.evals.inception_score import inception_score

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "metrics.npz")


def pairs(rule, **options):
  score = inception_score(logits(), **({"shuffle": rule} | options))
  return {"mean": (score.mean, FIXTURE[f"inception/{rule}"][0]),
          "std": (score.std, FIXTURE[f"inception/{rule}"][1])}  # fmt: skip


CASES = [
  Case(
    "evals.inception_score",
    f"torch-fidelity=={FIXTURE['versions/torch-fidelity']}, isc_features_to_metric",
    "250 samples, 101 classes, 10 splits",
    1e-6,
    lambda: pairs("torch_fidelity"),
  ),
  Case(
    "evals.inception_score",
    "StyleGAN-V's video rule, in NumPy",
    "250 samples, 101 classes, 10 splits",
    1e-6,
    lambda: pairs("stylegan_v"),
  ),
]


@pytest.mark.parametrize("parity", CASES, ids=["images", "video"])
def test_equals_the_reference(parity):
  check(parity)


@pytest.mark.parametrize(
  "wrong", [{"shuffle": "none"}, {"shuffle": "stylegan_v"}, {"seed": 0}, {"splits": 5}], ids=str
)
def test_another_shuffle_or_split_is_told_apart(wrong):
  assert measure(pairs("torch_fidelity", **wrong)).relative > 1e-3


def test_it_lies_between_one_and_the_number_of_classes():
  sure = 200 * np.eye(7, dtype=np.float32).repeat(10, axis=0)
  np.testing.assert_allclose(inception_score(sure, splits=1).mean, 7, rtol=1e-12)
  alike = np.zeros((70, 7), np.float32)
  np.testing.assert_allclose(inception_score(alike, splits=2).mean, 1, rtol=1e-12)


def test_classes_that_never_occur_leave_it_finite():
  x = np.zeros((40, 5), np.float32)
  x[:, 3], x[::2, 0] = -3000, 3000  # exp of these is 0, and its logarithm infinite
  score = inception_score(x, splits=2)
  assert np.isfinite(score.splits).all() and 1 < score.mean < 5


def test_too_few_samples_and_numbers_that_are_none_are_refused():
  with pytest.raises(DataError, match="10 splits needs more than 4 samples"):
    inception_score(np.zeros((4, 3), np.float32))
  with pytest.raises(DataError, match="not finite"):
    inception_score(np.full((20, 3), np.nan, np.float32))

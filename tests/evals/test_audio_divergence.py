"""FAD's guard, pairs by name, and KL divergences in their two published forms."""

from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.random_weights import draw

from vidgen.errors import DataError
from vidgen.evals.audio_divergence import (
  MINIMUM_WINDOWS,
  frechet_audio_distance,
  kl_divergence,
  paired,
)
from vidgen.evals.moments import moments_of

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "audio_networks.npz")


def logits():
  return [draw(name, [6, 527], scale=3.0) for name in ("real", "fake")]


def against_audiocraft(form, epsilon=1e-6):
  found = kl_divergence(*logits(), form=form, epsilon=epsilon)
  return {
    "real to generated": (found.forward, FIXTURE[f"kl/{form}/forward"]),
    "generated to real": (found.reverse, FIXTURE[f"kl/{form}/reverse"]),
  }


CASES = [
  Case(
    "evals.audio_divergence.kl_divergence",
    "torch==2.13.0, kl_div as audiocraft and audioldm_eval call it",
    form,
    1e-9,
    lambda form=form: against_audiocraft(form),
  )
  for form in ("softmax", "sigmoid")
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.config)
def test_parity(case):
  check(case)


def test_the_two_forms_and_another_epsilon_give_other_values():
  softmax, sigmoid = (kl_divergence(*logits(), form=form) for form in ("softmax", "sigmoid"))
  assert abs(softmax.forward - sigmoid.forward) > 1
  assert measure(against_audiocraft("softmax", epsilon=1e-5)).relative > 1e-6


def test_kl_is_of_the_generated_from_the_real():
  certain, unsure = np.array([[9.0, 0, 0]]), np.zeros([1, 3])
  found = kl_divergence(certain, unsure)
  assert found.forward == pytest.approx(np.log(3), abs=1e-2)
  assert found.both == found.forward + found.reverse
  assert kl_divergence(unsure, certain).forward == pytest.approx(found.reverse)


def test_kl_of_extreme_logits_is_finite():
  found = kl_divergence(np.array([[900.0, -900]]), np.array([[-900.0, 900]]), form="softmax")
  assert found.forward == pytest.approx(-np.log(1e-6))
  assert np.isfinite(kl_divergence(np.array([[900.0]]), np.array([[-900.0]]), form="sigmoid").both)


@pytest.mark.parametrize("bad", [np.zeros([0, 3]), np.array([[np.nan, 0, 0]])])
def test_kl_of_nothing_or_of_nan_is_refused(bad):
  with pytest.raises(DataError):
    kl_divergence(bad, bad)


def test_sounds_are_paired_by_name_whatever_their_order():
  rows = draw("rows", [3, 4])
  real = {"b.wav": rows[1], "a.wav": rows[0]}
  fake = {"a.wav": rows[0], "b.wav": rows[1]}
  pairs = paired(real, fake)
  assert pairs.names == ("a.wav", "b.wav") and pairs.missing == ()
  np.testing.assert_array_equal(pairs.real, pairs.fake)


def test_a_missing_pair_is_refused_by_name_or_counted():
  real = {"a.wav": np.zeros(4), "b.wav": np.ones(4)}
  fake = {"a.wav": np.zeros(4), "c.wav": np.ones(4)}
  with pytest.raises(DataError, match=r"b\.wav, c\.wav"):
    paired(real, fake)
  pairs = paired(real, fake, missing="count")
  assert pairs.names == ("a.wav",) and pairs.missing == ("b.wav", "c.wav")


def test_no_pair_at_all_is_refused_even_where_missing_ones_are_counted():
  with pytest.raises(DataError, match="nothing to pair"):
    paired({"a": np.zeros(1)}, {"b": np.zeros(1)}, missing="count")


def test_fad_of_too_few_windows_is_refused_on_either_side():
  few, many = (moments_of(draw(str(n), [n, 3])) for n in (MINIMUM_WINDOWS - 1, MINIMUM_WINDOWS))
  with pytest.raises(DataError, match="1023 generated windows"):
    frechet_audio_distance(many, few)
  with pytest.raises(DataError, match="1023 real windows"):
    frechet_audio_distance(few, many)
  assert frechet_audio_distance(few, few, minimum=2) == pytest.approx(0, abs=1e-9)


def test_fad_grows_with_how_far_a_set_is_moved():
  real = draw("set", [MINIMUM_WINDOWS, 8])
  distances = [
    frechet_audio_distance(moments_of(real), moments_of(real + np.float32(shift)))
    for shift in (0.0, 0.5, 1.0)
  ]
  np.testing.assert_allclose(distances, [0, 8 * 0.25, 8.0], atol=1e-5)

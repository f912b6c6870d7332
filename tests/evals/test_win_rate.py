"""Net win rate: antisymmetric, bounded, majority by item, and an interval that covers the truth."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vidgen.errors import DataError
from vidgen.evals.win_rate import majority, win_rate

votes = st.dictionaries(
  st.text(min_size=1, max_size=3),
  st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=6),
  min_size=1,
  max_size=12,
)


def items(outcomes):
  return {f"{i:04d}": [outcome] for i, outcome in enumerate(outcomes)}


@given(votes, st.sampled_from(["majority", "mean"]))
@settings(max_examples=60, deadline=None)
def test_swapping_the_systems_turns_the_sign(given_votes, rule):
  ours = win_rate(given_votes, rule=rule, resamples=20)
  swapped = {item: [-v for v in vs] for item, vs in given_votes.items()}
  theirs = win_rate(swapped, rule=rule, resamples=20)
  assert ours.net == -theirs.net and -100 <= ours.net <= 100
  assert (ours.wins, ours.losses, ours.ties) == (theirs.losses, theirs.wins, theirs.ties)
  assert ours.wins + ours.losses + ours.ties == len(given_votes)
  assert 0 <= ours.win_rate <= 100 and abs(ours.win_rate + theirs.win_rate - 100) < 1e-9
  np.testing.assert_allclose([ours.low, ours.high], [-theirs.high, -theirs.low], atol=1e-9)


@given(votes, st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_items_and_of_raters_means_nothing(given_votes, random):
  shuffled = list(given_votes.items())
  random.shuffle(shuffled)
  mixed = {item: random.sample(vs, len(vs)) for item, vs in shuffled}
  assert win_rate(mixed, resamples=20) == win_rate(given_votes, resamples=20)


def test_movie_gens_figure_of_wins_less_losses():
  found = win_rate(items([1] * 60 + [-1] * 25 + [0] * 15))
  assert (found.net, found.win_rate) == (35, 67.5)
  assert (found.wins, found.losses, found.ties) == (60, 25, 15)
  assert win_rate(items([0] * 9)).net == 0 and win_rate(items([1] * 9)).low == 100


@pytest.mark.parametrize(
  "given_votes, outcome",
  [([1, 1, -1], 1), ([1, 0, -1], None), ([1, -1], None), ([0, 0, 1], 0), ([1, 1, 0, 0], None),
   ([-1, -1, -1, 1, 1], -1), ([1, 1, -1, 0, 0], None)],
)  # fmt: skip
def test_a_majority_is_more_than_half(given_votes, outcome):
  assert majority(given_votes) == outcome


def test_split_votes_are_ties_that_are_counted():
  given_votes = {"a": [1, 0, -1], "b": [1, 1, -1], "c": [0, 0, 0]}
  found = win_rate(given_votes)
  assert (found.wins, found.ties, found.undecided) == (1, 2, 1)
  by_mean = win_rate(given_votes, rule="mean")
  np.testing.assert_allclose(by_mean.net, 100 / 9)
  assert by_mean.undecided == 0


def test_raters_of_one_item_are_one_item():
  """More raters that agree make no item weigh more, and no interval narrower."""
  few = win_rate({"a": [1], "b": [-1], "c": [1]})
  many = win_rate({"a": [1] * 9, "b": [-1], "c": [1]})
  assert few == many


def test_the_interval_covers_the_truth_and_narrows_with_the_root_of_items():
  rng = np.random.default_rng(0)
  covered, widths = 0, []
  for trial in range(60):
    outcomes = rng.choice([-1, 0, 1], p=[0.2, 0.3, 0.5], size=200)
    found = win_rate(items(outcomes.tolist()), resamples=300, seed=trial)
    covered += found.low <= 30 <= found.high
    widths.append(found.high - found.low)
  assert covered >= 52
  expected = 2 * 1.96 * 100 * np.sqrt(0.7 - 0.3**2) / np.sqrt(200)
  assert abs(np.mean(widths) / expected - 1) < 0.1
  assert win_rate(items([1, -1, 0]), seed=1) == win_rate(items([1, -1, 0]), seed=1)


def test_no_items_no_votes_and_strange_votes_are_refused():
  with pytest.raises(DataError, match="no item"):
    win_rate({})
  with pytest.raises(DataError, match="item a: votes are \\[\\]"):
    win_rate({"a": []})
  with pytest.raises(DataError, match="item a: votes are \\[2\\]"):
    win_rate({"a": [2]})

"""The order of the data: a permutation an epoch, and numbers that depend on the position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.inputs.order import random_bits, shuffled, uniforms


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 400), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(length, seed, epoch):
  positions = np.arange(epoch * length, (epoch + 1) * length)
  assert sorted(shuffled(seed, positions, length=length)) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own():
  first = shuffled(0, np.arange(100), length=100)
  assert (first != np.arange(100)).mean() > 0.9
  assert (first != shuffled(0, np.arange(100, 200), length=100)).mean() > 0.9
  assert (first != shuffled(1, np.arange(100), length=100)).mean() > 0.9


def test_neighbours_are_spread_evenly():
  """Where a sample goes does not tell where the next one goes: steps are uniform modulo n."""
  length = 5000
  order = shuffled(3, np.arange(length), length=length)
  counts = np.histogram(np.diff(order) % length, bins=20, range=(0, length))[0]
  assert ((counts - length / 20) ** 2 / (length / 20)).sum() < 45  # chi2, 19 degrees: p = 0.0007


@given(seed=st.integers(0, 2**63), start=st.integers(0, 2**40), cut=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_position_has_the_same_numbers_in_any_company(seed, start, cut):
  positions = np.arange(start, start + 10)
  whole = uniforms(seed, positions, draws=4)
  parts = [uniforms(seed, p, draws=7)[:, :4] for p in (positions[:cut], positions[cut:])]
  np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_numbers_are_uniform_and_columns_independent():
  draws = uniforms(0, np.arange(20_000), draws=3)
  assert draws.min() >= 0 and draws.max() < 1
  np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.01)  # 5 standard errors
  np.testing.assert_allclose(draws.var(0), 1 / 12, atol=0.005)
  assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.04
  assert len(np.unique(random_bits(0, np.arange(20_000), draws=3))) == 60_000


@pytest.mark.parametrize("length", [2**31 + 11, 10**12])
def test_a_long_data_set_needs_no_table(length):
  positions = np.arange(length - 5, length + 5)
  found = shuffled(0, positions, length=length)
  assert found.min() >= 0 and found.max() < length and len(set(found.tolist())) == 10

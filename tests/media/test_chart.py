"""Curves are reduced, scaled, labelled and drawn where their values are."""

import json
import re

import numpy as np
import pytest

from vidgen.media.chart import (
  SPANS,
  Series,
  line_chart,
  linear_axis,
  number,
  reduce,
  short,
  value_axis,
)


def test_a_short_curve_is_drawn_as_it_is():
  curve = reduce(Series("loss", np.array([1, 5, 9]), np.array([3.0, 1.0, 2.0])))
  assert curve.span == 1 and curve.mean.tolist() == [3, 1, 2] and curve.steps.tolist() == [1, 5, 9]


def test_a_long_curve_keeps_its_mean_and_its_extremes():
  values = np.random.default_rng(0).standard_normal(100_000)
  curve = reduce(Series("loss", np.arange(1, 100_001), values))
  assert 100 < len(curve.steps) <= SPANS and curve.span == 625
  assert curve.low.min() == values.min() and curve.high.max() == values.max()
  np.testing.assert_allclose(curve.mean.mean(), values.mean(), atol=1e-12)
  assert (curve.low <= curve.mean).all() and (curve.mean <= curve.high).all()


def test_steps_that_were_not_finite_are_left_out():
  values = np.array([1.0, np.nan, np.inf, 2.0])
  curve = reduce(Series("loss", np.arange(1, 5), values))
  assert curve.steps.tolist() == [1, 4]


@pytest.mark.parametrize(
  ("low", "high", "ends"), [(0.0, 270.0, (0, 300)), (3.0, 9.0, (0, 10)), (-1.5, 2.0, (-2, 2))]
)
def test_linear_axes_end_at_round_numbers_and_hold_zero(low, high, ends):
  axis = linear_axis(low, high)
  assert (axis.low, axis.high) == ends
  assert 3 <= len(axis.ticks) <= 6 and 0 in axis.ticks


def test_wide_positive_ranges_are_logarithmic_and_others_are_not():
  steps = np.arange(1, 4)

  def axis(values):
    return value_axis([reduce(Series("x", steps, np.array(values, np.float64)))])

  wide = axis([1.0, 0.1, 0.01])
  assert wide.logarithmic and {1.0, 0.1}.issubset(wide.ticks)
  np.testing.assert_allclose(wide.place(np.array([wide.low, 0.1, wide.high])), [0, 0.5, 1])
  assert not axis([250.0, 260.0, 240.0]).logarithmic
  assert not axis([1.0, 0.0, 100.0]).logarithmic
  assert axis([0.0, 0.0, 0.0]).high > 0


def test_one_spike_does_not_flatten_the_rest():
  values = np.ones(100_000)
  values[777] = 1e9
  curve = reduce(Series("norm", np.arange(1, 100_001), values))
  # its span's mean is drawn, its height is not
  assert value_axis([curve]).high < 3 * curve.mean.max() < 1e8


def test_the_line_passes_through_its_values():
  series = Series("rate", np.array([0, 50, 100]), np.array([0.0, 100.0, 50.0]))
  chart = line_chart("Rate", [series], last_step=100)
  assert 'd="M0.0 1000.0L500.0 0.0L1000.0 500.0" class="line s0"' in chart
  data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', chart)[1])
  assert data["series"][0] == {"name": "rate", "steps": [0, 50, 100], "values": [0, 100, 50]}
  assert data["x"] == [0, 100] and data["y"] == [0, 100] and data["log"] is False


def test_it_can_be_read_without_seeing_it():
  series = Series("held out", np.array([10, 20]), np.array([0.5, 0.25]), kind="points")
  chart = line_chart("Loss", [series], last_step=20)
  label = re.search(r'aria-label="([^"]*)"', chart)[1]
  assert label == (
    "Loss over 20 steps. held out: 0.5 at step 10, 0.25 at step 20, lowest 0.25, highest 0.5."
  )
  assert chart.count("<tr>") == 3 and "<td" in chart


def test_one_value_is_a_dot():
  chart = line_chart("Loss", [Series("a", np.array([3]), np.array([0.5]))], last_step=3)
  assert 'class="dot s0"' in chart and 'class="line' not in chart


def test_names_are_escaped():
  chart = line_chart("<b>", [Series("</script><i>", np.array([1]), np.ones(1))], last_step=1)
  assert "<b>" not in chart and "</script><i>" not in chart and "<i>" not in chart


def test_nothing_to_draw_is_refused():
  with pytest.raises(ValueError, match="nothing to draw"):
    line_chart("Loss", [Series("a", np.array([1]), np.array([np.nan]))], last_step=1)


def test_numbers_read_well():
  values = [0.0, 0.12345, 1.0, 255.25, 12345.6, 1e-5, -2.5, float("nan")]
  assert [number(v) for v in values] == [
    "0", "0.1235", "1", "255.2", "12,346", "1.00e-05", "-2.5", "not finite"
  ]  # fmt: skip
  assert [short(v) for v in (0.0, 0.2, 400.0, 1500.0, 2e6)] == ["0", "0.2", "400", "1.5k", "2M"]

"""Curves over training steps as inline SVG that reads well at any width, with and without scripts.

The drawing stretches with the page while lines keep their width; labels are text of the page, so
they keep their size. Long curves are cut into equal spans of steps: the line is their mean, the
band behind it reaches from their smallest to their largest value.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vidgen.media.html import Html, data_block, join, table, tag

SPANS = 160  # of a curve: more than a phone can show, fewer than the steps of any real run
LOGARITHMIC = 5.0  # ratio of largest to smallest from which the axis is logarithmic
ROWS = 12  # of the table beside a chart


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve: values [n] at ascending steps [n]; NaN where a step was not finite."""

  name: str
  steps: np.ndarray
  values: np.ndarray
  kind: Literal["line", "points"] = "line"


@dataclasses.dataclass(frozen=True)
class Curve:
  """A series as drawn: mean, smallest and largest value around each of at most `SPANS` steps."""

  name: str
  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  kind: str
  span: int  # steps that one point stands for, 1: every value is shown


def reduce(series: Series) -> Curve:
  """Cuts a series into spans; spans without a finite value are left out."""
  keep = np.isfinite(series.values)
  steps, values = series.steps[keep], series.values[keep].astype(np.float64)
  if len(steps) <= SPANS:
    return Curve(series.name, steps, values, values, values, series.kind, 1)
  width = -(-int(steps[-1] - steps[0] + 1) // SPANS)
  _, start = np.unique((steps - steps[0]) // width, return_index=True)
  count = np.diff([*start, len(steps)])
  return Curve(
    series.name,
    np.rint(np.add.reduceat(steps.astype(np.float64), start) / count).astype(int),
    np.add.reduceat(values, start) / count,
    np.minimum.reduceat(values, start),
    np.maximum.reduceat(values, start),
    series.kind,
    width,
  )


@dataclasses.dataclass(frozen=True)
class Axis:
  """A range, its ticks, and whether equal distances on it are equal ratios."""

  low: float
  high: float
  ticks: tuple[float, ...]
  logarithmic: bool = False

  def place(self, values: np.ndarray | float) -> np.ndarray:
    """Values as fractions of the axis, 0 at its low end."""
    ends = np.array([self.low, self.high, *np.ravel(values)], np.float64)
    if self.logarithmic:
      ends = np.log(np.maximum(ends, 1e-300))
    return ((ends[2:] - ends[0]) / (ends[1] - ends[0])).reshape(np.shape(values))


def linear_axis(low: float, high: float, *, ticks: int = 4) -> Axis:
  """From 0, or a round number below a negative `low`, to a round number above `high`."""
  low = min(0.0, low)
  high = max(high, low + 1e-12)
  step = _round_step((high - low) / ticks)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  marks = tuple(k * step for k in range(first, last + 1))
  return Axis(marks[0], marks[-1], marks)


def value_axis(curves: Sequence[Curve]) -> Axis:
  """The vertical axis for curves: logarithmic where they are positive and span a wide ratio.

  Single values far outside, such as a spike of the gradient norm, are drawn at its edge; no mean
  is.
  """
  ends = np.concatenate([np.concatenate([c.low, c.high]) for c in curves])
  means = np.concatenate([c.mean for c in curves])
  low = min(float(np.quantile(ends, 0.005)), float(means.min()))
  high = max(float(np.quantile(ends, 0.995)), float(means.max()))
  if low <= 0 or high / low < LOGARITHMIC:
    return linear_axis(low, high)
  margin = (high / low) ** 0.04
  low, high = low / margin, high * margin
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  marks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
  tens = [m for m in marks if abs(math.log10(m) - round(math.log10(m))) < 1e-9]
  return Axis(low, high, tuple(tens if len(marks) > 7 and len(tens) > 1 else marks), True)


def _round_step(step: float) -> float:
  scale = 10.0 ** math.floor(math.log10(step))
  return next(m for m in (1, 2, 2.5, 5, 10) if m * scale >= step * (1 - 1e-9)) * scale


def number(value: float) -> str:
  """Four significant digits, thousands parted by commas, tiny values with an exponent."""
  if not math.isfinite(value):
    return "not finite"
  if value and abs(value) < 1e-3:
    return f"{value:.2e}"
  digits = 3 - (math.floor(math.log10(abs(value))) if value else 0)
  text = f"{value:,.{max(0, digits)}f}"
  return text.rstrip("0").rstrip(".") if "." in text else text


def short(value: float) -> str:
  """A tick's label: 1500 as 1.5k, 2000000 as 2M."""
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{letter}"
  return f"{value:.4g}" if not value or abs(value) >= 1e-3 else f"{value:.0e}"


def line_chart(
  title: str, series: Sequence[Series], *, last_step: int, unit: str = "", note: str = ""
) -> Html:
  """A figure with axes from step 0 to `last_step`, legend, readout, and its values as a table.

  `unit` is that of the values; `note` a sentence below the chart.

  Raises:
    ValueError: no series has a finite value.
  """
  curves = [c for c in map(reduce, series) if len(c.steps)]
  if not curves:
    raise ValueError(f"{title}: nothing to draw")
  across, up = linear_axis(0.0, float(last_step)), value_axis(curves)
  across = dataclasses.replace(across, high=float(last_step))
  summary = [f"{title} over {last_step:,} steps."]
  for c in curves:
    summary.append(
      f"{c.name}: {number(c.mean[0])} at step {c.steps[0]:,}, {number(c.mean[-1])} at step "
      f"{c.steps[-1]:,}, lowest {number(c.mean.min())}, highest {number(c.mean.max())}."
    )
  wide = max(c.span for c in curves)
  if wide > 1:
    note = f"Line: mean of {wide:,} steps; band: smallest to largest. {note}".strip()
  if up.logarithmic:
    note = f"{note} Logarithmic axis.".strip()
  keys = (
    tag("span", tag("i", class_=f"key {c.kind} s{i}"), c.name, class_="legend")
    for i, c in enumerate(curves)
  )
  return tag(
    "figure",
    tag(
      "figcaption",
      tag("h3", title, tag("small", f" {unit}") if unit else None),
      tag("p", *keys, class_="legends") if len(curves) > 1 else None,
    ),
    tag("output", _last_values(curves), class_="readout"),
    _plot(curves, across, up, label=" ".join(summary)),
    tag("p", note, class_="note") if note else None,
    tag("details", tag("summary", "Values"), _values(curves)),
    data_block(
      {
        "x": [across.low, across.high],
        "y": [up.low, up.high],
        "log": up.logarithmic,
        "series": [
          {"name": c.name, "steps": c.steps.tolist(), "values": [float(f"{v:.6g}") for v in c.mean]}
          for c in curves
        ],
      }
    ),
    class_="chart",
  )


def _last_values(curves: Sequence[Curve]) -> str:
  return "last: " + " · ".join(
    f"{c.name} {number(c.mean[-1])}" if len(curves) > 1 else number(c.mean[-1]) for c in curves
  )


def _plot(curves: Sequence[Curve], across: Axis, up: Axis, *, label: str) -> Html:
  """Grid, bands, lines and labels; the drawing is 1000 units wide and high."""
  marks = [t for t in across.ticks if t <= across.high]
  x, y = across.place(np.array(marks)), up.place(np.array(up.ticks))
  grid = [tag("path", d=f"M0 {1000 * (1 - at):.1f}h1000", class_="grid") for at in y]
  labels = [
    tag("span", short(t), class_="up", style=f"bottom:{100 * at:.2f}%")
    for t, at in zip(up.ticks, y, strict=True)
  ] + [
    tag("span", short(t), class_="across", style=f"left:{100 * at:.2f}%")
    for t, at in zip(marks, x, strict=True)
  ]
  drawn = [_draw(c, across, up, index=i) for i, c in enumerate(curves)]
  svg = tag(
    "svg", *grid, *drawn, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true"
  )
  return tag(
    "div",
    tag("div", svg, tag("i", class_="cursor"), class_="area"),
    *labels,
    class_="plot",
    role="img",
    tabindex=0,
    aria_label=label,
  )


def _draw(curve: Curve, across: Axis, up: Axis, *, index: int) -> Html:
  x = 1000 * across.place(curve.steps)

  def points(values: np.ndarray) -> list[str]:
    y = np.clip(1000 * (1 - up.place(values)), 0, 1000)
    return [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]

  line = points(curve.mean)
  parts = []
  if curve.span > 1:
    outline = points(curve.high) + points(curve.low)[::-1]
    parts.append(tag("path", d=f"M{'L'.join(outline)}Z", class_=f"band s{index}"))
  if len(line) > 1:
    parts.append(tag("path", d=f"M{'L'.join(line)}", class_=f"{curve.kind} s{index}"))
  if curve.kind == "points" and len(line) <= 40 or len(line) == 1:
    parts.append(tag("path", d="".join(f"M{p}h0" for p in line), class_=f"dot s{index}"))
  return join(*parts)


def _values(curves: Sequence[Curve]) -> Html:
  """Some rows of the first curve, the first and last among them, and the others nearest to them."""
  chosen = np.unique(np.linspace(0, len(curves[0].steps) - 1, ROWS).round().astype(int))
  rows = []
  for step in curves[0].steps[chosen]:
    near = [c.mean[int(np.abs(c.steps - step).argmin())] for c in curves]
    rows.append([f"{step:,}", *map(number, near)])
  return table(["step", *(c.name for c in curves)], rows, numbers=len(curves))

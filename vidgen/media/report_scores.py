"""The scores of a report: values with what is known of their chance, and their protocol records."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from vidgen.config import plain
from vidgen.media.chart import number
from vidgen.media.html import Html, absent, definitions, join, section_head, table, tag
from vidgen.media.run_files import Run, Scored

WHOLE = "all"  # the value that sums up the others, where a metric has one


@dataclasses.dataclass(frozen=True)
class Headline:
  """The score that one looks for first: its name, its value, and of how many samples."""

  name: str
  value: str
  below: str


def headline(scores: Sequence[Scored]) -> Headline | None:
  """The summing value of the first metric, or its first value."""
  if not scores:
    return None
  first = scores[0]
  key = WHOLE if WHOLE in first.values else next(iter(first.values))
  count = first.protocol.get("count")
  of = f"of {count:,} samples, {first.metric}" if isinstance(count, int) else first.metric
  name = "All right" if key == WHOLE else key
  return Headline(name, _value(first, key), of)


def scores_section(run: Run) -> Html:
  """A table and a protocol record for every metric."""
  if not run.scores:
    return join(section_head("Scores"), absent(run.missing["scores"]))
  note = None
  if run.samples is not None:
    digest = run.samples.digest()
    if any(s.protocol.get("samples", digest) != digest for s in run.scores):
      note = "These scores are of other samples than those shown above."
  return join(section_head("Scores", note=note), *(_metric(scored) for scored in run.scores))


def _metric(scored: Scored) -> Html:
  head: list[Any] = [scored.metric, "value"]
  if scored.shares:
    head = ["asked for", tag("span", "share", class_="hidden"), "right", "95% interval"]
  if scored.changes:
    head.append("change")
  rows = [_row(scored, name) for name in scored.values]
  numbers = len(head) - (2 if scored.shares else 1)
  known = plain(dict(scored.protocol))
  details = known.pop("details", None)
  protocol = {
    name.replace("_", " "): tag("code", str(value)) if _is_digest(value) else _spell(value)
    for name, value in (known | details if isinstance(details, dict) else known).items()
    if value not in (None, "")
  }
  return tag(
    "div",
    table(head, rows, numbers=numbers, class_="scores shares" if scored.shares else "scores"),
    tag(
      "details",
      tag("summary", f"Protocol of {scored.metric}: scores of other protocols are not comparable"),
      definitions(protocol, class_="rows"),
    ),
  )


def _row(scored: Scored, name: str) -> list[Any]:
  row: list[Any] = [name, _value(scored, name)]
  if scored.shares:
    share = min(1.0, max(0.0, scored.values[name]))
    bar = tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar")
    right, asked = _count(scored, name)
    row = [name, bar, _value(scored, name), _interval(right, asked) if asked else "not known"]
  if scored.changes:
    change = scored.changes.get(name, math.nan)
    row.append("" if math.isnan(change) else f"{change:+.1%}" if scored.shares else f"{change:+g}")
  return row


def _value(scored: Scored, name: str) -> str:
  value = scored.values[name]
  return f"{value:.1%}" if scored.shares else number(value)


def _count(scored: Scored, name: str) -> tuple[int, int]:
  """How many samples have `name` right, and of how many it was asked."""
  judged = [v["right"][name] for v in scored.verdicts if name in v["right"]]
  return sum(map(bool, judged)), len(judged)


def _interval(right: int, count: int) -> Html:
  low, high = wilson(right, count)
  of = tag("span", f" ({right:,} of {count:,})", class_="of")
  return join(f"{low:.0%} to {high:.0%}", of)


def wilson(right: int, count: int) -> tuple[float, float]:
  """Wilson's 95% interval of a share, `right` of `count`; it never leaves [0, 1]."""
  z = 1.959964
  share, spread = right / count, z * z / count
  middle = share + spread / 2
  half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
  return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def _is_digest(value: Any) -> bool:
  return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _spell(value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{name} {_spell(part)}" for name, part in value.items())
  if isinstance(value, list):
    return (" to " if len(value) == 2 else ", ").join(map(str, value))
  return str(value)

"""Goodput: which part of a run's life went into steps that count, and where the rest went.

The life of a run is the time from its first start to its last word, across all starts. Every second
of it has one cause:

- "step": the loop's time with the device at steps that were kept. Goodput is this over everything.
- "lost": the same, for steps after the one that a later start went on from, which it did again.
- "down": between the last line of one start and the beginning of the next: the rest of a start that
  was killed, the queue, the start of Python.
- "start": from the beginning of `train` to its first step: restoring, compiling, the first batch.
- "data": waits for a batch at whose end the device had run out of work. A wait during which it was
  busy costs nothing, and counts as "step".
- "eval", "sheet": until their results were there, once the steps before them were done; the first
  sheet compiles.
- "save": copying the state for a checkpoint, and waiting for the previous or the last one.

`goodput.jsonl` has one line a minute, and at every save and end, with the seconds of that start up
to then. Unlike the other logs it is never cut at a resume: what was lost is part of the story. A
killed start therefore counts up to its last line. `goodput.json` is the sum, as of the last end.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidgen.train.metrics import JsonLines

CAUSES: tuple[str, ...] = ("step", "lost", "down", "start", "data", "eval", "sheet", "save")
EVERY = 60.0  # seconds between lines
_FIELDS = {"step", "from", "begin", "time", "seconds"}


class Ledger:
  """Gives every second since it was made to one cause: `spend` takes what passed since the last."""

  def __init__(
    self, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
  ):
    self._clock = clock
    self.begin = now()
    self._last = self._first = clock()
    self.seconds: dict[str, float] = dict.fromkeys(CAUSES, 0.0)

  def spend(self, cause: str) -> None:
    """What passed since the last call was for `cause`."""
    last, self._last = self._last, self._clock()
    self.seconds[cause] += self._last - last

  @property
  def elapsed(self) -> float:
    """Seconds up to the last `spend`: the sum of all causes."""
    return self._last - self._first

  @property
  def time(self) -> float:
    """Seconds since 1970 at the last `spend`."""
    return self.begin + self.elapsed


class Goodput:
  """The lines of one start in `goodput.jsonl`, after those of earlier ones.

  `first` is the step that this start goes on from.
  """

  def __init__(self, directory: Path, ledger: Ledger, *, first: int):
    self._path = directory / "goodput.jsonl"
    self._ledger, self._first = ledger, first
    self._lines = JsonLines(self._path, step=math.inf)  # cuts only what a kill left in two
    self._written = -math.inf

  def write(self, step: int, *, at_once: bool = False) -> None:
    """Notes that `step` steps are done; a line at most once in `EVERY` seconds, or `at_once`."""
    if at_once or self._ledger.time - self._written >= EVERY:
      self._written = self._ledger.time
      seconds = {cause: round(s, 3) for cause, s in self._ledger.seconds.items() if s}
      self._lines.write(
        {
          "step": step,
          "from": self._first,
          "begin": round(self._ledger.begin, 3),
          "time": round(self._ledger.time, 3),
          "seconds": seconds,
        }
      )
      self._lines.flush()

  def summary(self) -> dict[str, Any]:
    """`summary` of all starts so far."""
    return summary(read(self._path))

  def close(self) -> None:
    """Closes the file."""
    self._lines.close()


def read(path: Path) -> list[dict[str, Any]]:
  """The lines of a `goodput.jsonl`, as far as they are whole; none if there is no file."""
  lines: list[dict[str, Any]] = []
  with contextlib.suppress(OSError, ValueError):
    for text in path.read_bytes().splitlines():
      line = json.loads(text)
      if not isinstance(line, dict) or not line.keys() >= _FIELDS:
        break
      lines.append(line)
  return lines


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Sums over starts: {"goodput": 0 to 1, "wall": s, "starts": n, "seconds": {cause: s}}."""
  starts: list[list[Mapping[str, Any]]] = []
  for line in lines:
    if not starts or line["begin"] != starts[-1][-1]["begin"]:
      starts.append([])
    starts[-1].append(line)
  seconds: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
  kept = math.inf  # steps after this one were done again
  for number in reversed(range(len(starts))):
    start = starts[number]
    for cause, spent in start[-1]["seconds"].items():
      seconds[cause] += spent
    useful = max((_steps(line) for line in start if line["step"] <= kept), default=0.0)
    seconds["lost"] += _steps(start[-1]) - useful
    seconds["step"] -= _steps(start[-1]) - useful
    kept = min(kept, start[0]["from"])
    if number:
      seconds["down"] += max(0.0, start[0]["begin"] - starts[number - 1][-1]["time"])
  wall = sum(seconds.values())
  return {
    "goodput": seconds["step"] / wall if wall else 0.0,
    "wall": wall,
    "starts": len(starts),
    "seconds": seconds,
  }


def _steps(line: Mapping[str, Any]) -> float:
  return line["seconds"].get("step", 0.0)


def spell(total: Mapping[str, Any]) -> str:
  """The summary in one line: goodput, and the causes of the rest, the largest first."""
  rest = {cause: s for cause, s in total["seconds"].items() if cause != "step" and s > 0}
  causes = [f"{c} {rest[c] / total['wall']:.1%}" for c in sorted(rest, key=lambda c: -rest[c])]
  starts = f"{total['starts']} start{'s' if total['starts'] > 1 else ''}"
  line = f"goodput {total['goodput']:.1%} of {total['wall']:.0f} s in {starts}"
  return ": ".join([line, *([", ".join(causes)] if causes else [])])

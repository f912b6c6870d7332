"""What a run shows of itself: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

BAR = 24  # characters
PLAIN_EVERY = 10.0  # seconds between plain lines


class Progress:
  """Prints to a text stream what is done, at what rate, the time left, and a few figures."""

  def __init__(self, total: int, *, start: int = 0, out: Any = None, units: str = "steps"):
    self._total = total
    self._units = units
    self._out = out or sys.stdout
    self._terminal = self._out.isatty()
    self._begin = time.monotonic()
    self._start = start
    self._next = 0.0
    self._width = 0

  def update(self, step: int, text: str) -> None:
    """Shows that `step` steps are done; `text` is put behind, such as "loss 0.12"."""
    now = time.monotonic()
    if now < self._next and step < self._total:
      return
    self._next = now + (0.2 if self._terminal else PLAIN_EVERY)
    rate = (step - self._start) / max(now - self._begin, 1e-9)
    left = (self._total - step) / rate if rate > 0 else float("inf")
    line = f"{self._units} {step}/{self._total}  {rate:.2f}/s  ETA {clock(left)}  {text}".rstrip()
    if self._terminal:
      full = BAR * step // max(self._total, 1)
      line = f"[{'=' * full}{' ' * (BAR - full)}] {line}"
      self._out.write("\r" + line.ljust(self._width))
      self._width = len(line)
    else:
      self._out.write(line + "\n")
    self._out.flush()

  def say(self, line: str) -> None:
    """Prints a line of its own."""
    if self._terminal and self._width:
      self._out.write("\r" + " " * self._width + "\r")
      self._width = 0
    self._out.write(line + "\n")
    self._out.flush()

  def close(self) -> None:
    """Ends the bar's line."""
    if self._terminal and self._width:
      self._out.write("\n")
      self._width = 0
      self._out.flush()


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  if seconds == float("inf"):
    return "-"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

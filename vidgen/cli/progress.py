"""Progress of long work: one live line with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time


class Progress:
  """Told how much is done, it prints; on standard error, so that results can be piped."""

  def __init__(self, what: str, *, every: float = 10.0):
    self._what = what
    self._every = every  # seconds between plain lines
    self._start = self._last = time.monotonic()
    self._live = sys.stderr.isatty()

  def __call__(self, done: int, total: int) -> None:
    """Reports `done` of `total`."""
    now = time.monotonic()
    finished = done >= total
    if not (self._live or finished or now - self._last >= self._every):
      return
    self._last = now
    rate = done / max(now - self._start, 1e-9)
    left = (total - done) / rate if rate else float("inf")
    ending = f"took {now - self._start:.1f} s" if finished else f"about {left:.0f} s left"
    line = f"{self._what} {done}/{total}, {rate:.3g} a second, {ending}"
    if self._live:
      print(f"\r\x1b[K{line}", end="\n" if finished else "", file=sys.stderr, flush=True)
    else:
      print(line, file=sys.stderr, flush=True)

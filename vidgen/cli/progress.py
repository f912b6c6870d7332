"""Progress of a verb whose work says how much of it is done."""

import sys

from vidgen.train.progress import Progress as Display


class Progress:
  """Called with (done, total), shows it on standard error, so that results can be piped."""

  def __init__(self, units: str):
    self._units = units
    self._display: Display | None = None

  def __call__(self, done: int, total: int) -> None:
    """Shows that `done` of `total` units are done."""
    if self._display is None:
      self._display = Display(total, out=sys.stderr, units=self._units)
    self._display.update(done, "")
    if done >= total:
      self._display.close()

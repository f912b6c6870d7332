"""A run that makes no progress ends by itself, and says where every thread stood.

A process of several that waits for ever (a collective whose other side is gone, a dead file system,
a data worker in a deadlock) costs the whole pod until somebody looks. Here it ends with exit code 6
after `train.hang_seconds`, and whatever started it starts it again.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vidgen.errors import HangError

GRACE = 4  # times as long may the start, a save, an evaluation or a sheet take
TELLING = 10.0  # seconds at most to write the stacks


class Watchdog:
  """Context manager: ends the process when `beat` is not called for `seconds`; 0: never.

  Before the first `beat`, and while something `slow` is under way, it waits `GRACE` times as long.
  It then writes the stacks of all threads to standard error and to `hang-<process>.txt` in
  `directory`, and leaves with the code of `HangError`, from a thread of its own: the main thread
  may be inside a call that never returns, so nothing is unwound, saved or waited for. The last
  checkpoint stands.

  A call that also holds Python's lock stops that thread as well; then a timer in C, which the
  thread keeps winding up, writes the stacks to standard error and leaves with code 1.
  """

  def __init__(self, directory: Path, *, seconds: int | float, process: int):
    self._path = directory / f"hang-{process}.txt"
    self._seconds = seconds
    self._alive = time.monotonic()
    self._started = False
    self._slow = 0  # what is under way that may take longer than a step
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    self._alive = time.monotonic()
    if self._seconds:
      self._thread = threading.Thread(target=self._watch, name="hang-watchdog", daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._stop.set()
    if self._thread is not None:
      self._thread.join()
      faulthandler.cancel_dump_traceback_later()

  def beat(self) -> None:
    """Something was done: a step, an evaluation, a save."""
    self._alive = time.monotonic()
    self._started = True

  def slow(self, change: int) -> None:
    """Something slow begins (1), or has ended (-1); either is a sign of life."""
    self._slow += change
    self._alive = time.monotonic()

  @contextlib.contextmanager
  def patient(self) -> Iterator[None]:
    """Something slow is done within."""
    self.slow(1)
    try:
      yield
    finally:
      self.slow(-1)

  def _watch(self) -> None:
    tick = min(self._seconds / 10, 10.0)
    while not self._stop.wait(tick):
      still = time.monotonic() - self._alive
      limit = self._seconds * (1 if self._started and not self._slow else GRACE)
      if still > limit:
        faulthandler.cancel_dump_traceback_later()
        return self._end(still)
      faulthandler.dump_traceback_later(limit - still + GRACE * tick, exit=True, file=2)

  def _end(self, still: float) -> None:
    error = HangError(
      f"nothing was done for {still:.0f} s (train.hang_seconds {self._seconds:g}); the stacks of "
      f"all threads are in {self._path}; the last checkpoint stands: the same command goes on"
    )
    # telling may block as well: a dead file system, a pipe that nobody reads
    threading.Timer(TELLING, os._exit, (HangError.exit_code,)).start()
    with contextlib.suppress(OSError):
      os.write(2, f"{error}\n".encode())
      faulthandler.dump_traceback(2)
    with contextlib.suppress(OSError), open(self._path, "w") as file:
      file.write(f"{error}\n\n")
      file.flush()
      faulthandler.dump_traceback(file)
    os._exit(HangError.exit_code)

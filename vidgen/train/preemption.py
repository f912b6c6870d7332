"""The one owner of SIGTERM.

Without `jax.distributed` a handler of our own raises a flag, which the loop reads at every step.
With it, jax has a handler of its own, and a Python handler set later would silently disable that
one: so none is set, and the loop asks jax, which makes all processes agree on one step.
"""

import multiprocessing
import os
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils

from vidgen.errors import VidgenError


class Preemption:
  """Context manager, for the main thread, after `jax.distributed.initialize` if that is used.

  A second SIGTERM ends the process at once, with exit code 1: nothing was saved for it. A save that
  it interrupts leaves no checkpoint, and the ones before it untouched.
  """

  def __init__(self):
    self._asked = False
    self._own = True
    self._previous: Any = None

  def __enter__(self) -> "Preemption":
    self._own = not jax.distributed.is_initialized()
    if self._own:
      self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *_: Any) -> None:
    if self._own:
      signal.signal(signal.SIGTERM, self._previous)

  def _handle(self, signum: int, frame: Any) -> None:
    if self._asked:
      for child in multiprocessing.active_children():
        child.kill()
      os._exit(VidgenError.exit_code)
    self._asked = True
    # written past Python's buffers, which the interrupted code may be holding
    os.write(sys.stderr.fileno(), b"SIGTERM: saving at the end of this step; again: exit at once\n")

  def requested(self, step: int) -> bool:
    """Whether to save and stop after `step`; to be asked once after every step.

    In a multi-process run all processes get True at the same step.
    """
    if self._own:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)

  @property
  def signalled(self) -> bool:
    """Whether this process has had the signal, whatever the others have."""
    return self._asked

"""Success and failure that all processes of a run share: none waits for one that gave up."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from vidgen.errors import CheckpointError


def on_first_process(act: Callable[[], None]) -> None:
  """Acts on the first process; what is raised there is raised on all."""
  error = None
  if jax.process_index() == 0:
    try:
      act()
    except Exception as caught:
      error = caught
  error = agree(error)
  if error is not None:
    raise error


def agree(error: BaseException | None) -> BaseException | None:
  """This process's error, or if another process has one, an error that says so."""
  if jax.process_count() > 1:
    with jax.transfer_guard("allow"):  # one number, and only at a save
      failed = multihost_utils.process_allgather(np.int32(error is not None))
    if error is None and np.any(failed):
      return CheckpointError(f"process {int(np.argmax(failed))} failed; see its message")
  return error

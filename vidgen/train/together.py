"""Success and failure that all processes of a run share: none waits for one that gave up."""

import os
import sys
import traceback
import zlib
from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vidgen.errors import CheckpointError, VidgenError


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


def same(text: str) -> bool:
  """Whether all processes ask with the same text; all of them must ask."""
  if jax.process_count() == 1:
    return True
  with jax.transfer_guard("allow"):  # one number, and only at a save
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
  return bool(np.all(sums == sums[0]))


def leave(error: Exception, *, verb: str) -> NoReturn:
  """Ends this one of several processes, with the exit code of `error`, at once.

  The usual way out waits for the others to leave as well, and they wait for this one.
  """
  if isinstance(error, VidgenError):
    print(f"{verb}: {error}", file=sys.stderr)
    code = error.exit_code
  else:
    traceback.print_exception(error)
    code = VidgenError.exit_code
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)

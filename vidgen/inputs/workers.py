"""What worker processes do beside decoding: outlive no parent, and say what they were at."""

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

WATCH_SECONDS = 1.0
_LENGTH = 1024  # bytes of one note
_PARENTS = (signal.SIGINT, signal.SIGTERM)  # sent to a whole process group, meant for the parent


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
  """Processes started within, from this thread or threads that it starts, hold back signals.

  A worker takes seconds to reach `start_worker`; a signal to the process group must not end it
  before, or the parent would find it dead while it saves.
  """
  resource_tracker.ensure_running()  # which, where it starts only later, lets the signals through
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(index: int, count: int) -> None:
  """Runs first in each of `count` worker processes.

  Signals to the whole process group are for the parent, which saves before it ends; a worker ends
  when told, or when its parent is gone.
  """
  del index, count
  for number in _PARENTS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)  # what `starting_workers` held back is gone
  threading.Thread(target=_watch, args=(os.getppid(),), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(WATCH_SECONDS)
  os._exit(1)  # a killed parent tells nobody, and nobody is left to read the batches


class InWork:
  """Notes of what each thread decodes, in files, so that they outlast a killed process."""

  def __init__(self):
    self._folder = tempfile.TemporaryDirectory(prefix="vidgen-in-work-")
    self._path = Path(self._folder.name)
    self._local = threading.local()

  def __getstate__(self):
    return {"_path": self._path}

  def __setstate__(self, state):
    self.__dict__.update(state, _local=threading.local())

  def note(self, shard: str, key: str) -> None:
    """This thread begins with a sample; empty texts: with none."""
    handle = self._local.__dict__.get("handle")
    if handle is None:
      name = f"{os.getpid()}-{threading.get_ident()}"
      handle = self._local.handle = os.open(self._path / name, os.O_WRONLY | os.O_CREAT, 0o600)
    line = json.dumps([shard[-300:], key[:300]]) if shard else ""
    os.pwrite(handle, line.encode()[:_LENGTH].ljust(_LENGTH), 0)

  def of_the_dead(self) -> list[tuple[str, str]]:
    """(shard, key) of what processes that no longer run were decoding."""
    found = []
    for path in sorted(self._path.iterdir()):
      if _runs(int(path.name.partition("-")[0])):
        continue
      try:
        shard, key = json.loads(path.read_bytes())
        found.append((shard, key))
      except ValueError:
        continue  # it was between samples
    return found


def _runs(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True

"""The directory of a run: one writer at a time, and known to be writable before the first step.

The lock is `flock` on `lock`, which the kernel frees when the process ends, however it ends: a run
that was killed is taken over at once. For file systems where `flock` does not reach other hosts,
the file also names its holder and is touched now and then; a lock of another host is refused until
it has not been touched for `STALE` seconds.
"""

import fcntl
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import jax

from vidgen.config import canonical_json
from vidgen.errors import ConfigError
from vidgen.whole_file import write_whole

TOUCH = 30.0  # seconds between signs of life
STALE = 300.0


class RunDirectory:
  """Context manager that holds `path` for this process; only the first process of a group locks.

  Raises (on entering):
    ConfigError: the directory cannot be made or written, or another process trains there.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path).absolute()
    self._lock: int | None = None
    self._stop = threading.Event()

  @property
  def writes(self) -> bool:
    """Whether this process is the one that writes logs and pictures."""
    return jax.process_index() == 0

  def __enter__(self) -> "RunDirectory":
    if not self.writes:
      return self
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      probe = self.path / f".write-test-{os.getpid()}"
      with open(probe, "wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
      # the file system's clock, not this machine's, is what the lock's time is compared with
      now = probe.stat().st_mtime
      probe.unlink()
      handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
      raise ConfigError(f"workdir {self.path}: cannot be written: {error}") from error
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = _holder(handle)
      os.close(handle)
      if not isinstance(error, BlockingIOError):
        raise ConfigError(f"workdir {self.path}: cannot be locked: {error}") from error
      raise ConfigError(f"workdir {self.path}: another run trains there ({holder})") from error
    age = now - os.fstat(handle).st_mtime
    holder = _holder(handle)
    if holder and holder.get("host") != socket.gethostname() and age < STALE:
      os.close(handle)
      raise ConfigError(
        f"workdir {self.path}: another run trains there ({holder}), seen {age:.0f} s ago; wait "
        f"{STALE - age:.0f} s, or remove the file `lock` if that run is gone"
      )
    os.truncate(handle, 0)
    os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    self._lock = handle
    threading.Thread(target=self._touch, name="run-lock", daemon=True).start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._stop.set()
    if self._lock is not None:
      os.truncate(self._lock, 0)
      os.close(self._lock)
      self._lock = None

  def _touch(self) -> None:
    while not self._stop.wait(TOUCH):
      handle = self._lock
      if handle is not None:
        try:
          os.utime(handle)
        except OSError:
          pass  # a full or vanished disk shows where it matters, in the next save

  def write_json(self, name: str, tree: Any) -> None:
    """Writes `tree` as canonical JSON to the file `name`, whole or not at all."""
    if not self.writes:
      return
    write_whole(self.path / name, (canonical_json(tree) + "\n").encode())


def _holder(handle: int) -> dict[str, Any] | None:
  try:
    found = json.loads(os.pread(handle, 4096, 0))
    return found if isinstance(found, dict) else None
  except ValueError:
    return None

"""Bad samples: named, counted, kept in a file, and held against a budget.

Every process that decodes appends one JSON line a bad sample to the same file (O_APPEND: lines of
different processes do not mix); whoever trains polls the file and stops when there are too many.
"""

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vidgen.errors import DataError

LISTED = 5  # how many bad samples the error of an exceeded budget names
MAX_REASON = 500  # characters of a reason that are kept


class BadSample(DataError):
  """A sample that cannot be used: why, and, once known, in which shard and under which key."""

  def __init__(self, reason: str, *, shard: str = "", key: str = ""):
    super().__init__(reason)
    self.reason = reason[:MAX_REASON]
    self.shard = shard
    self.key = key

  def __str__(self) -> str:
    return f"shard {self.shard}, key {self.key!r}: {self.reason}" if self.shard else self.reason

  def fresh(self) -> "BadSample":
    """The same without a traceback, which would hold on to frames, and grow with each raise."""
    return _rebuild(type(self), self.reason, self.__dict__)

  def __reduce__(self):  # worker processes send it; the default knows no keywords
    return _rebuild, (type(self), self.reason, self.__dict__)


def _rebuild(kind: type[BadSample], reason: str, fields: dict[str, Any]) -> BadSample:
  bad = kind.__new__(kind, reason)
  bad.__dict__.update(fields)
  return bad


@dataclasses.dataclass(frozen=True)
class Budget:
  """How many distinct bad samples are borne: at most `count`, and at most `fraction` of `total`."""

  count: int
  fraction: float
  total: int

  @property
  def allowed(self) -> int:
    """The largest number of bad samples that does not stop the run."""
    return min(self.count, int(self.fraction * self.total))


class Quarantine:
  """The file of bad samples of one run: `record` from any process, `check` from the loop."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    budget: Budget,
    shards: Collection[str] | None = None,
  ):
    """Only bad samples of `shards` count, where given: several data sets may share the file."""
    self.path = Path(path)
    self.budget = budget
    self._shards = None if shards is None else frozenset(shards)
    self._read = 0  # bytes of the file that are counted
    self._bad: dict[tuple[str, str], str] = {}
    self._written: set[tuple[str, str]] = set()

  def __getstate__(self):
    return {"path": self.path, "budget": self.budget, "shards": self._shards}

  def __setstate__(self, state):
    self.__init__(state.pop("path"), **state)

  def record(self, bad: BadSample) -> None:
    """Appends `bad` to the file, unless this process did or read it before."""
    name = (bad.shard, bad.key)
    if not self._written and not self._bad:
      self._poll()  # after a resume: what is there is not written again
    if name in self._written or name in self._bad:
      return
    self._written.add(name)
    line = json.dumps({"shard": bad.shard, "key": bad.key, "reason": bad.reason}) + "\n"
    self.path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      size = os.fstat(handle).st_size
      if size and os.pread(handle, 1, size - 1) != b"\n":
        line = "\n" + line  # a killed process left half a line
      os.write(handle, line.encode("utf-8", "backslashreplace"))
    finally:
      os.close(handle)

  def count(self) -> int:
    """The number of distinct bad samples so far, of all processes and of earlier starts."""
    self._poll()
    return len(self._bad)

  def check(self) -> int:
    """As `count`; costs one `stat` when nothing is new.

    Raises:
      DataError: there are more bad samples than the budget allows.
    """
    count = self.count()
    if count <= self.budget.allowed:
      return count
    first = [
      f"shard {shard}, key {key!r}: {why}" for (shard, key), why in list(self._bad.items())[:LISTED]
    ]
    more = f"; and {count - LISTED} more" if count > LISTED else ""
    raise DataError(
      f"{count} bad samples, of {self.budget.total}, are more than the {self.budget.allowed} "
      f"allowed (config.inputs.bad_count, bad_fraction); all are in {self.path}: "
      f"{'; '.join(first)}{more}"
    )

  def _poll(self) -> None:
    try:
      size = os.stat(self.path).st_size
    except FileNotFoundError:
      return
    if size <= self._read:
      return
    with open(self.path, "rb") as file:
      file.seek(self._read)
      text = file.read()
    whole = text[: text.rfind(b"\n") + 1]  # another process may be in the middle of a line
    self._read += len(whole)
    for line in whole.splitlines():
      try:
        entry = json.loads(line)
        shard, key, reason = str(entry["shard"]), str(entry["key"]), str(entry["reason"])
      except (ValueError, KeyError, TypeError):
        continue  # half a line that a killed process left; its sample is met and written again
      if self._shards is None or shard in self._shards:
        self._bad.setdefault((shard, key), reason)

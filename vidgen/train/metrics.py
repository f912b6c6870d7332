"""Metrics: read late, averaged by clu, written as JSON lines and TensorBoard events.

`train.jsonl` holds what a run computes and nothing that depends on time or machine: one line a
step, and one for every held-out evaluation. A resumed run cuts it at the step it starts from, so
that it becomes, byte for byte, what an unbroken run would have written. `speed.jsonl` has timings.
A log that cannot be written (no directory, a full disk) is counted and said once; training goes on.
"""

import collections
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from clu import metrics as clu_metrics
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_proto: Any = event_pb2  # its classes are made when it is imported, unseen by a type checker


@functools.cache
def means(names: tuple[str, ...]) -> type[clu_metrics.Collection]:
  """A clu collection that averages scalars of these names, on the device."""
  averages = {name: clu_metrics.Average.from_output(name) for name in names}
  return clu_metrics.Collection.create(**averages)


class LateReader:
  """Values on the device, each with what to do with it on the host, read `depth` entries late.

  So the host dispatches ahead of the device, yet never by more than `depth` steps.
  """

  def __init__(self, *, depth: int = 2):
    self._depth = depth
    self._waiting: collections.deque[tuple[Any, Callable[[Any], None]]] = collections.deque()

  def push(self, arrays: Any, consume: Callable[[Any], None]) -> None:
    """Queues `arrays`; consumes the oldest entries, in order, while more than `depth` wait."""
    self._waiting.append((arrays, consume))
    while len(self._waiting) > self._depth:
      self._pop()

  def drain(self) -> None:
    """Consumes all that wait; blocks until the device has computed it."""
    while self._waiting:
      self._pop()

  def _pop(self) -> None:
    arrays, consume = self._waiting.popleft()
    consume(jax.device_get(arrays))


class Sink:
  """Something to write to that may fail without stopping the run."""

  def __init__(self, name: str):
    self.name = name
    self.failures = 0

  def attempt(self, write: Callable[[], Any]) -> None:
    """Calls `write`; an OSError is counted, and the first one is reported."""
    try:
      write()
    except (OSError, ValueError) as error:  # ValueError: the file is closed
      self.failures += 1
      if self.failures == 1:
        print(f"warning: {self.name} cannot be written, training goes on: {error}", file=sys.stderr)


class JsonLines(Sink):
  """A file of JSON objects, each with a "step", in order.

  Opening it cuts every line after `step`, and a last line that a kill left in two.
  """

  def __init__(self, path: Path, *, step: int | float):
    super().__init__(path.name)
    self._path = path
    self._file: Any = None
    self.attempt(lambda: _cut(path, step))
    self.attempt(self._open)

  def _open(self) -> None:
    self._file = open(self._path, "ab")

  def write(self, entry: Mapping[str, Any]) -> None:
    """Appends one line. Non-finite numbers become null, which JSON has instead."""
    finite = {
      key: None if isinstance(value, float) and not math.isfinite(value) else value
      for key, value in entry.items()
    }
    line = json.dumps(finite, separators=(",", ":"), allow_nan=False) + "\n"
    self.attempt(lambda: self._put(line.encode()))

  def _put(self, line: bytes) -> None:
    if self._file is None or not self._path.exists():
      raise FileNotFoundError(f"{self._path} is gone")
    self._file.write(line)

  def flush(self, *, durable: bool = False) -> None:
    """Hands lines to the system; `durable`, also to the disk (before a checkpoint relies on it)."""
    self.attempt(lambda: self._flush(durable))

  def _flush(self, durable: bool) -> None:
    if self._file is not None:
      self._file.flush()
      if durable:
        os.fsync(self._file.fileno())

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if self._file is not None:
      self.attempt(self._file.close)


def _cut(path: Path, step: int | float) -> None:
  if not path.exists():
    return
  end = 0
  with open(path, "rb") as file:
    for line in file:
      try:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
          break
      except (ValueError, KeyError, TypeError):
        break
      end += len(line)
  os.truncate(path, end)


class Events(Sink):
  """TensorBoard event files, written without TensorFlow and without a thread that could block."""

  def __init__(self, directory: Path, *, step: int):
    super().__init__("events")
    self._writer: EventsWriter | None = None
    self.attempt(lambda: self._open(directory, step))

  def _open(self, directory: Path, step: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # the name's time has seconds only: two starts in one second would share a file
    self._writer = EventsWriter(str(directory / "events"), filename_suffix=f".{time.time_ns()}")
    if step:  # TensorBoard drops what an earlier start wrote from this step on
      log = _proto.SessionLog(status=_proto.SessionLog.START)
      self._event(step + 1, session_log=log)

  def _event(self, step: int, **content: Any) -> None:
    if self._writer is not None:
      self._writer.write_event(_proto.Event(wall_time=time.time(), step=step, **content))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars, such as {"train/loss": 0.1}, and flushes."""

    def put() -> None:
      for name, value in values.items():
        self._event(step, summary=scalar(name, value))
      if self._writer is not None:
        self._writer.flush()

    self.attempt(put)

  def close(self) -> None:
    """Flushes and closes."""
    if self._writer is not None:
      self.attempt(self._writer.close)


def read_events(path: Path) -> list[Any]:
  """All events of one file, for checks; record: length, its checksum, data, its checksum."""
  data, events, position = path.read_bytes(), [], 0
  while position < len(data):
    length = int.from_bytes(data[position : position + 8], "little")
    events.append(_proto.Event.FromString(data[position + 12 : position + 12 + length]))
    position += length + 16
  return events

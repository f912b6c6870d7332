"""What a run tells of itself: logs, events, progress, speed, and the end of a run gone bad."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vidgen.errors import NonFiniteError
from vidgen.train.experiment import TrainConfig
from vidgen.train.goodput import Goodput, Ledger, spell
from vidgen.train.hang import Watchdog
from vidgen.train.metrics import Events, JsonLines, Sink
from vidgen.train.progress import Progress
from vidgen.train.run_directory import RunDirectory


class Watch:
  """Takes the metrics of steps in order; context manager. Other processes than the first are mute.

  Args:
    directory: where the files go.
    step: the step the run starts from; what the files hold beyond it is cut.
    config: cadences and limits.
    flops: model FLOPs of a train step by bucket (three times the forward pass: work that is done
      twice to save memory does not count).
    peak: FLOP/s of one device, or None if not known; then no utilisation is reported.
    bad_samples: tells how many samples were found to be bad so far.
    ledger: takes account of the time; begun where the run begins.
    watchdog: is told of every step, evaluation, sheet and save.
  """

  def __init__(
    self,
    directory: RunDirectory,
    *,
    step: int,
    config: TrainConfig,
    flops: Mapping[str, float],
    peak: float | None,
    ledger: Ledger,
    watchdog: Watchdog,
    bad_samples: Callable[[], int] = lambda: 0,
  ):
    self._ledger, self._watchdog = ledger, watchdog
    self._loop = "start"  # what the loop's time counts as: "step", once the first can begin
    self._bad_samples, self._bad_said = bad_samples, 0
    self._directory, self._config, self._flops, self._peak = directory, config, flops, peak
    self._step = step
    self._files: list[Any] = []
    if directory.writes:
      self._train = JsonLines(directory.path / "train.jsonl", step=step)
      self._speed = JsonLines(directory.path / "speed.jsonl", step=step)
      self._events = Events(directory.path / "events", step=step)
      self._goodput = Goodput(directory.path, ledger, first=step)
      self._progress = Progress(config.steps, start=step)
      self._files = [self._train, self._speed, self._events, self._goodput, self._progress]
    self._sheets = Sink("sheets")
    self._held_out: float | None = None
    self._bad: list[dict[str, Any]] = []
    self._start_window()

  def __enter__(self) -> "Watch":
    self._ledger.spend("start")
    self._start_window()
    if self._files:
      self._goodput.write(self._step, at_once=True)
    return self

  def __exit__(self, *_: Any) -> None:
    self._ledger.spend(self._loop)
    if self._files:
      self._goodput.write(self._step, at_once=True)
      self._sheets.attempt(self._conclude)
    for file in self._files:
      file.close()

  def _conclude(self) -> None:
    total = self._goodput.summary()
    self._directory.write_json("goodput.json", total)
    self.say(spell(total))

  def _start_window(self) -> None:
    self._begin = time.monotonic()
    self._accounted, self._useful = self._ledger.elapsed, self._ledger.seconds["step"]
    self._seconds = {"data": 0.0}
    self._rows: list[Mapping[str, float]] = []
    self._work = 0.0

  @contextlib.contextmanager
  def blocked(self, by: str) -> Iterator[None]:
    """Counts the time of this block: the loop is held up by "save", "eval" or "sheet"."""
    begin = time.monotonic()
    self._ledger.spend(self._loop)
    try:
      with self._watchdog.patient():
        yield
    finally:
      self._ledger.spend(by)
      self._seconds[by] = self._seconds.get(by, 0.0) + time.monotonic() - begin

  @contextlib.contextmanager
  def fetching(self, busy: Callable[[], bool]) -> Iterator[None]:
    """Counts the time of this block, a wait for data; `busy`: has the device work all the same?"""
    begin = time.monotonic()
    self._ledger.spend(self._loop)
    try:
      yield
    finally:
      hidden = self._loop == "start" or busy()
      self._ledger.spend(self._loop if hidden else "data")
      self._loop = "step"
      self._seconds["data"] += time.monotonic() - begin

  @contextlib.contextmanager
  def dispatching(self, what: str) -> Iterator[None]:
    """As `blocked`, for "eval" or "sheet", whose results are handed in later."""
    self._watchdog.slow(1)
    with self.blocked(what):
      yield

  def say(self, line: str) -> None:
    """Prints a line of its own."""
    if self._files:
      self._progress.say(line)

  def trained(self, step: int, bucket: str, metrics: Mapping[str, np.ndarray]) -> None:
    """Takes the metrics of one step.

    Raises:
      NonFiniteError: this step is one too many in a row that was not finite.
    """
    self._ledger.spend("step")
    self._watchdog.beat()
    self._step = step
    row = {name: float(value) for name, value in sorted(metrics.items())}
    self._rows.append(row)
    self._work += self._flops[bucket]
    if self._files:
      self._train.write({"step": step, "bucket": bucket, **row})
    if row["bad_steps"]:
      self._non_finite(step, bucket, row)
    if step % self._config.log_every == 0 or step == self._config.steps:
      self._report(step)

  def _non_finite(self, step: int, bucket: str, row: Mapping[str, float]) -> None:
    count, most = int(row["bad_steps"]), self._config.max_bad_steps
    self._bad = [*self._bad, {"step": step, "bucket": bucket, **row}][-count:]
    if count < most:
      self.say(f"warning: step {step} was not finite and changed nothing ({count} in a row)")
      return
    dump = {
      "seed": self._config.seed,
      "first_batch": self._bad[0]["step"] - 1,  # batch n of the data makes step n + 1
      "steps": [
        {k: str(v) if isinstance(v, float) else v for k, v in b.items()} for b in self._bad
      ],
    }
    self._sheets.attempt(lambda: self._directory.write_json("non_finite.json", dump))
    raise NonFiniteError(
      f"{count} non-finite steps in a row, up to step {step}; parameters are as before them. See "
      f"{self._directory.path / 'non_finite.json'}; lower the learning rate, or look at the data"
    )

  def evaluated(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Takes the means over held-out batches: NAME, and NAME/BUCKET of single buckets."""
    self._ledger.spend("eval")
    self._watchdog.slow(-1)
    row = {f"held_out_{name}": float(value) for name, value in sorted(metrics.items())}
    self._held_out = row["held_out_loss"]
    if self._files:
      self._train.write({"step": step, **row})
      self._events.write(step, {f"held_out/{k.removeprefix('held_out_')}": row[k] for k in row})

  def sheet(self, step: int, captions: Sequence[str], videos: np.ndarray) -> None:
    """Writes samples [n, t, h, w, c] as sheets/<step>.png."""
    from vidgen.media.sheet import write_contact_sheet

    self._ledger.spend("sheet")
    self._watchdog.slow(-1)
    if not self._files:
      return
    path = self._directory.path / "sheets" / f"{step:08d}.png"

    def write() -> None:
      path.parent.mkdir(exist_ok=True)
      write_contact_sheet(videos, path=path, captions=captions)

    self._sheets.attempt(write)

  def _report(self, step: int) -> None:
    seconds = time.monotonic() - self._begin
    count = len(self._rows)
    useful = self._ledger.seconds["step"] - self._useful
    speed: dict[str, Any] = {
      "step": step,
      "time": round(time.time(), 3),
      "seconds_per_step": seconds / count,
      "samples_per_second": count * self._config.batch_size / seconds,
      "data_wait": self._seconds["data"] / seconds,
      "save_wait": self._seconds.get("save", 0.0) / seconds,
      "goodput": useful / max(self._ledger.elapsed - self._accounted, 1e-9),
      "bad_samples": self._bad_samples(),
      "includes": sorted(set(self._seconds) - {"data"}),
      "model_flops_per_second": self._work / seconds,
    }
    if self._peak:
      everything = self._peak * jax.device_count()
      speed |= {"mfu": self._work / seconds / everything, "peak_flops_per_second": everything}
    names = sorted({name for row in self._rows for name in row})
    mean = {n: float(np.mean([row[n] for row in self._rows if n in row])) for n in names}
    self._start_window()
    if not self._files:
      return
    self._speed.write(speed)
    self._goodput.write(step)
    if speed["bad_samples"] > self._bad_said:
      self._bad_said = speed["bad_samples"]
      self.say(f"warning: {self._bad_said} bad samples so far; see quarantine.jsonl")
    self.flush()
    numbers = {
      k: float(v)
      for k, v in speed.items()
      if isinstance(v, float | int) and k not in ("time", "step")
    }
    self._events.write(
      step,
      {f"train/{k}": v for k, v in mean.items()} | {f"speed/{k}": v for k, v in numbers.items()},
    )
    text = f"loss {mean['loss']:.4f}"
    if self._held_out is not None:
      text += f"  held out {self._held_out:.4f}"
    text += f"  data wait {speed['data_wait']:.1%}"
    if self._peak:
      text += f"  MFU {speed['mfu']:.1%}"
    self._progress.update(step, text)

  def flush(self, *, durable: bool = False) -> None:
    """Hands the logs to the system, or to the disk."""
    if self._files:
      if durable:
        self._goodput.write(self._step, at_once=True)
      self._train.flush(durable=durable)
      self._speed.flush(durable=durable)

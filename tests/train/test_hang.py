"""A run that is stuck ends by itself and tells where, also inside a call that never returns."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidgen.train.hang import GRACE, Watchdog

HERE = Path(__file__).parent


def stuck_run(workdir, kind, *, seconds):
  return subprocess.run(
    [sys.executable, HERE / "run_fake.py", workdir, "12", "0.0"],
    env={**os.environ, "PYTHONPATH": str(HERE), "STUCK": kind, "HANG": str(seconds),
         "SAVE_EVERY": "2"},
    capture_output=True, text=True, timeout=180,
  )  # fmt: skip


def test_a_stuck_run_ends_with_6_and_the_stacks_and_goes_on_when_started_again(tmp_path):
  """Its main thread is in a call into C that does not return."""
  done = stuck_run(tmp_path, "data", seconds=12)
  assert done.returncode == 6, done.stderr
  stacks = (tmp_path / "hang-0.txt").read_text()
  for text in (done.stderr, stacks):
    assert "nothing was done for" in text and "train.hang_seconds 12" in text
    assert "in __next__" in text and "fetch" in text  # where the main thread is
    assert text.count("Thread 0x") >= 2
  done = stuck_run(tmp_path, "no", seconds=60)
  assert done.returncode == 0 and '"done": 12' in done.stdout, done.stderr


@pytest.mark.soak
def test_a_call_that_also_holds_the_lock_of_python_ends_with_the_stacks(tmp_path):
  done = stuck_run(tmp_path, "lock", seconds=12)
  assert done.returncode == 1 and "Timeout" in done.stderr and "in __next__" in done.stderr


@pytest.fixture
def ended(monkeypatch):
  """When the watchdog would have ended the process, in seconds after now."""
  times, begin = [], time.monotonic()
  monkeypatch.setattr(Watchdog, "_end", lambda self, still: times.append(time.monotonic() - begin))
  return times


def test_steps_keep_it_quiet_and_silence_ends_it(ended, tmp_path):
  with Watchdog(tmp_path, seconds=1.0, process=0) as watchdog:
    for _ in range(20):
      watchdog.beat()
      time.sleep(0.1)
    assert not ended
    time.sleep(1.5)
    assert ended


def test_the_start_and_slow_things_have_more_time(ended, tmp_path):
  with Watchdog(tmp_path, seconds=0.5, process=0) as watchdog:
    time.sleep(0.5 * (GRACE - 1))
    watchdog.beat()
    with watchdog.patient():
      time.sleep(0.5 * (GRACE - 1))
    watchdog.slow(1)
    watchdog.beat()
    time.sleep(0.5 * (GRACE - 1))
    assert not ended
    watchdog.slow(-1)
    time.sleep(0.9)
    assert ended


def test_zero_seconds_are_off(ended, tmp_path):
  with Watchdog(tmp_path, seconds=0, process=0) as watchdog:
    assert watchdog._thread is None

"""SIGKILL at any instant of saving: older steps stay whole, and the rest is swept."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from saved import CONFIG, assert_same_bits, like, state

from vidgen.train.checkpoint import COMPLETE, Checkpoints

KEEP = 2


def save_for_ever(directory: str, log: str) -> None:
  """Resumes and saves step after step; notes each in `log` once it is said to be durable."""
  checkpoints = Checkpoints(directory, keep=KEEP)
  checkpoints.prepare()
  done = checkpoints.latest()
  if done is not None:
    assert_same_bits(checkpoints.restore(None, like(state(done))).state, state(done))
  handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  for step in itertools.count((done or 0) + 1):
    checkpoints.save(step, state(step), {"position": step}, CONFIG)
    if step % 2:  # half of the saves are waited for, half are met by the next one
      checkpoints.wait()
      os.write(handle, b"%d\n" % step)


def kill_while_saving(directory: Path, *, kills: int, seed: int) -> int:
  """Runs and kills `save_for_ever`, checking after each kill; returns the kills that hit a save."""
  rng = random.Random(seed)
  print(f"seed {seed}")
  context = multiprocessing.get_context("forkserver")  # children of a process that only imported
  context.set_forkserver_preload(["saved", "test_kill"])
  checkpoints, log, interrupted = Checkpoints(directory / "checkpoints"), directory / "log", 0
  for _ in range(kills):
    first = checkpoints.latest()
    child = context.Process(target=save_for_ever, args=(str(directory / "checkpoints"), str(log)))
    child.start()
    deadline = time.monotonic() + 600
    while checkpoints.latest() == first:
      assert child.is_alive() and time.monotonic() < deadline
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.4))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the loop ended by itself"
    steps = checkpoints.steps()
    durable = int(log.read_text().split()[-1]) if log.exists() else 0
    assert steps[-1] >= durable, f"step {durable} was said to be durable, there are {steps}"
    assert len(steps) >= min(KEEP, steps[-1]), f"only {steps} are left"
    for step in steps:
      checkpoints.verify(step)
    newest = checkpoints.restore(None, like(state(steps[-1])))
    assert_same_bits(newest.state, state(steps[-1]))
    assert newest.data_state == {"position": steps[-1]}
    interrupted += any(not COMPLETE.fullmatch(p.name) for p in checkpoints._directory.iterdir())
  checkpoints.prepare()
  assert all(COMPLETE.fullmatch(p.name) for p in checkpoints._directory.iterdir())
  return interrupted


def test_a_kill_while_saving_leaves_the_older_steps_whole(tmp_path):
  seed = int(os.environ.get("VIDGEN_KILL_SEED", time.time_ns() % 2**32))
  assert kill_while_saving(tmp_path, kills=6, seed=seed) > 0


@pytest.mark.soak
def test_hundred_kills_while_saving(tmp_path):
  assert kill_while_saving(tmp_path, kills=100, seed=0) > 50

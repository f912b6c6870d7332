"""A run that is killed again and again and resumed equals the unbroken run, bit for bit.

Everything is real: `vidgen train` as a process of its own, the Movie Gen stage, MP4 shards, data
workers, SIGKILL at random instants of stepping and of saving, one SIGTERM.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from real_run import Run, build_data, write_recipe

STEPS_BETWEEN_KILLS = 8  # at most, so that a run has an end


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sources")
  return {"recipe": write_recipe(folder), "data": build_data(folder)}


def unbroken(run: Run) -> dict:
  run.finish(run.start(), code=0)
  return run.result()


def broken(run: Run, *, kills: int, seed: int) -> dict:
  """Kills the run `kills` times, half of them while it saves, and terminates it once."""
  rng = random.Random(seed)
  print(f"seed {seed}")
  terminate = rng.randrange(kills)
  for index in range(kills):
    process = run.start()
    first = run.lines()
    run.wait_until(lambda f=first: run.lines() != f and run.lines() > 0, process)
    first = run.lines()
    if index == terminate:
      process.send_signal(signal.SIGTERM)
      run.finish(process, code=143)
      assert run.lines() == max(int(p.name) for p in run.checkpoints.iterdir())
      continue
    if rng.random() < 0.5:
      run.wait_until(run.saving, process)
      time.sleep(rng.uniform(0, 0.1))
    else:
      more = rng.randrange(STEPS_BETWEEN_KILLS)
      run.wait_until(lambda f=first, m=more: run.lines() >= f + m, process)
      time.sleep(rng.uniform(0, 0.05))
    process.kill()
    run.finish(process, code=-signal.SIGKILL)
  run.finish(run.start(), code=0)
  return run.result()


def compare(tmp_path: Path, *, kills: int, seed: int, **fields) -> None:
  steps = (kills + 1) * STEPS_BETWEEN_KILLS
  one = Run(tmp_path / "unbroken", steps=steps, **fields)
  other = Run(tmp_path / "broken", steps=steps, **fields)
  expected = unbroken(one)
  assert expected["step"] == steps and expected["log"].count("\n") >= steps
  assert broken(other, kills=kills, seed=seed) == expected
  names = {p.name for p in other.checkpoints.iterdir()}
  assert names == {p.name for p in one.checkpoints.iterdir()}, "something was left behind"


def test_a_killed_and_resumed_run_equals_the_unbroken_one(tmp_path, sources):
  seed = int(os.environ.get("VIDGEN_KILL_SEED", time.time_ns() % 2**32))
  compare(tmp_path, kills=3, workers=1, seed=seed, eval_every=0, **sources)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_change_nothing(tmp_path, sources, workers):
  compare(tmp_path, kills=21, workers=workers, seed=workers, eval_every=5, **sources)

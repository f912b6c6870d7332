"""Memory stays flat: over many saves alone, and (soak) over 2,000 steps of a real run with 40."""

import multiprocessing
import re
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from real_run import Run, build_data, write_recipe
from saved import CONFIG

from vidgen.train.checkpoint import Checkpoints

MEGABYTE = 1 << 20


def resident(process: int | str = "self") -> int:
  """Bytes resident now; zero for a process that is gone."""
  try:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
  except OSError:
    return 0
  return 1024 * int(found[1]) if found else 0


def save_and_measure(directory: str, saves: int, pipe) -> None:
  """Saves 4 MB `saves` times; sends what memory is resident after each."""
  checkpoints = Checkpoints(directory, keep=1)
  for step in range(1, saves + 1):
    weights = {"w": jnp.full((1024, 1024), step, jnp.float32)}
    held = {"step": jnp.int32(step), "params": weights, "ema": None, "opt_state": ()}
    checkpoints.save(step, held, {}, CONFIG)
    checkpoints.wait()
    pipe.send(resident())
  checkpoints.close()


def test_thirty_saves_hold_no_memory(tmp_path):
  """A save that kept its copy would add 4 MB each, 80 MB from the tenth to the thirtieth."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["saved", "test_memory"])
  ours, theirs = context.Pipe(duplex=False)
  child = context.Process(target=save_and_measure, args=(str(tmp_path), 30, theirs))
  child.start()
  theirs.close()
  sizes = []
  for _ in range(30):
    assert ours.poll(600)
    sizes.append(ours.recv())
  child.join()
  assert child.exitcode == 0
  assert max(sizes[20:]) - max(sizes[:10]) < 20 * MEGABYTE, [s // MEGABYTE for s in sizes]


@pytest.mark.soak
def test_memory_of_a_run_of_2000_steps_with_40_saves_is_flat(tmp_path):
  """Peaks of the halves, without the first hundred steps, in which caches and arenas fill."""
  run = Run(
    tmp_path / "run", recipe=write_recipe(tmp_path), data=build_data(tmp_path), steps=2000,
    workers=0, save_every=50, eval_every=200, log_every=10,
  )  # fmt: skip
  process, peaks, lines = run.start(), [0, 0], 0
  while process.poll() is None:
    now = resident(process.pid)
    lines = run.lines()
    if lines > 100:
      half = lines > 1050
      peaks[half] = max(peaks[half], now)
    time.sleep(0.1)
  run.finish(process, code=0)
  print("peaks of the halves in MB:", [peak / MEGABYTE for peak in peaks])
  assert lines >= 2000 and 0 < peaks[1] <= 1.02 * peaks[0]

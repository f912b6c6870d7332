"""Memory stays flat: over many saves alone, and (soak) over 2,000 steps of a real run with 40."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from saved import CONFIG

from vidgen.train.checkpoint import Checkpoints

MEGABYTE = 1 << 20


def resident(process: int | str = "self") -> tuple[int, int]:
  """Bytes resident now and at most so far; zeros for a process that is gone."""
  try:
    text = Path(f"/proc/{process}/status").read_text()
  except OSError:
    return 0, 0
  found = [re.search(rf"{key}:\s+(\d+) kB", text) for key in ("VmRSS", "VmHWM")]
  now, most = (1024 * int(match[1]) if match else 0 for match in found)
  return now, most


def save_and_measure(directory: str, saves: int, pipe) -> None:
  """Saves 4 MB `saves` times; sends the most memory that was resident after each."""
  checkpoints = Checkpoints(directory, keep=1)
  for step in range(1, saves + 1):
    weights = {"w": jnp.full((1024, 1024), step, jnp.float32)}
    held = {"step": jnp.int32(step), "params": weights, "ema": None, "opt_state": ()}
    checkpoints.save(step, held, {}, CONFIG)
    checkpoints.wait()
    pipe.send(resident()[0])
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
    assert ours.poll(60)
    sizes.append(ours.recv())
  child.join()
  assert child.exitcode == 0
  assert max(sizes[20:]) - max(sizes[:10]) < 20 * MEGABYTE, [s // MEGABYTE for s in sizes]

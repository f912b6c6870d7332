"""A run that is killed again and again and resumed equals the unbroken run, bit for bit.

Everything is real: `vidgen train` as a process of its own, the Movie Gen stage, MP4 shards, data
workers, SIGKILL at random instants of stepping and of saving, one SIGTERM.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidgen.cli import main

ROOT = Path(__file__).resolve().parents[2]
STEPS_BETWEEN_KILLS = 8  # at most, so that a run has an end
CONFIG = """
import runpy
def get_config():
  config = runpy.run_path({recipe!r})["get_config"]("tiny")
  config.stage.fields.update(layers=1, width=32, heads=2, mlp_width=64)
  config.stage.fields.text_encoder = {{"length": 32, "words": 8, "width": 16, "mlp_width": 32}}
  config.inputs.text_length = 32
  config.train.update(batch_size=4, save_every=3, log_every=1, eval_batches=1, keep=2)
  config.train.optimizer.warmup_steps = 5
  return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
  path = tmp_path_factory.mktemp("recipe") / "small.py"
  path.write_text(CONFIG.format(recipe=str(ROOT / "configs/movie_gen/t2v_256.py")))
  return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "shapes_world"
  arguments = ["--count", "16", "--workers", "1", "--seed", "5"]
  assert not main(
    ["data", "build", str(ROOT / "data/shapes_world.py"), "--out", str(directory), *arguments]
  )
  return directory


class Run:
  """One run in its own workdir; `start` starts or resumes it."""

  def __init__(
    self, workdir: Path, *, recipe: Path, data: Path, steps: int, workers: int, eval_every: int
  ):
    self.workdir = workdir
    self.checkpoints = workdir / "checkpoints"
    self.mark = f"{os.getpid()}-{workdir}"  # in the environment of every process of the run
    self.command = [sys.executable, "-m", "vidgen.cli", "train", "--config", str(recipe)]
    self.command += ["--data", str(data), "--workdir", str(workdir)]
    self.command += [f"--config.train.steps={steps}", f"--config.inputs.workers={workers}"]
    self.command += [f"--config.train.eval_every={eval_every}"]

  def start(self) -> subprocess.Popen:
    environment = {**os.environ, "VIDGEN_TEST_RUN": self.mark}
    return subprocess.Popen(
      self.command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

  def finish(self, process: subprocess.Popen, *, code: int) -> None:
    errors = process.communicate(timeout=300)[1].decode()
    assert process.returncode == code, errors[-3000:]
    self.wait_for_children()

  def lines(self) -> int:
    log = self.workdir / "train.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0

  def saving(self) -> bool:
    return self.checkpoints.exists() and any(
      ".saving" in p.name for p in self.checkpoints.iterdir()
    )

  def wait_until(self, condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
      assert process.poll() is None, process.communicate()[1].decode()[-3000:]
      assert time.monotonic() < deadline
      time.sleep(0.002)

  def wait_for_children(self) -> None:
    """Data workers of a killed run end by themselves."""
    needle = f"VIDGEN_TEST_RUN={self.mark}".encode()
    deadline = time.monotonic() + 30
    while left := [pid for pid in Path("/proc").glob("[0-9]*") if needle in _environment(pid)]:
      assert time.monotonic() < deadline, f"still there: {left}"
      time.sleep(0.05)

  def result(self) -> dict:
    """Digests of the newest checkpoint, recomputed by `vidgen inspect`, and the log."""
    out = self.workdir / "inspect.json"
    assert main(["inspect", "--workdir", str(self.workdir), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    return {
      "step": report["step"],
      "digests": report["digests"],
      "config": report["config"]["digest"],
      "log": (self.workdir / "train.jsonl").read_text(),
    }


def _environment(process: Path) -> bytes:
  try:
    return (process / "environ").read_bytes()
  except OSError:
    return b""


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


def test_a_killed_and_resumed_run_equals_the_unbroken_one(tmp_path, recipe, data):
  seed = int(os.environ.get("VIDGEN_KILL_SEED", time.time_ns() % 2**32))
  compare(tmp_path, kills=3, workers=1, seed=seed, eval_every=0, recipe=recipe, data=data)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_change_nothing(tmp_path, recipe, data, workers):
  sources = {"recipe": recipe, "data": data}
  compare(tmp_path, kills=21, workers=workers, seed=workers, eval_every=5, **sources)

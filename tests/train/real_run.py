"""A real run in a process of its own: `vidgen train`, the Movie Gen stage at its smallest, MP4s."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vidgen.cli import main

ROOT = Path(__file__).resolve().parents[2]
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


def write_recipe(folder: Path) -> Path:
  """A recipe on a copy of the shipped one, which somebody may edit while a long test runs."""
  path, shipped = folder / "small.py", folder / "t2v_256.py"
  shutil.copy(ROOT / "configs/movie_gen/t2v_256.py", shipped)
  path.write_text(CONFIG.format(recipe=str(shipped)))
  return path


def build_data(folder: Path) -> Path:
  """Sixteen clips of ShapesWorld, and what else the recipe makes."""
  directory = folder / "shapes_world"
  arguments = ["--out", str(directory), "--count", "16", "--workers", "1", "--seed", "5"]
  assert not main(["data", "build", str(ROOT / "data/shapes_world.py"), *arguments])
  return directory


class Run:
  """One run in its own workdir; `start` starts or resumes it."""

  def __init__(
    self, workdir: Path, *, recipe: Path, data: Path, steps: int, workers: int, **train: int
  ):
    self.workdir = workdir
    self.checkpoints = workdir / "checkpoints"
    self.mark = f"{os.getpid()}-{workdir}"  # in the environment of every process of the run
    self.command = [sys.executable, "-m", "vidgen.cli", "train", "--config", str(recipe)]
    self.command += ["--data", str(data), "--workdir", str(workdir)]
    self.command += [f"--config.train.steps={steps}", f"--config.inputs.workers={workers}"]
    self.command += [f"--config.train.{key}={value}" for key, value in train.items()]

  def start(self) -> subprocess.Popen:
    environment = {**os.environ, "VIDGEN_TEST_RUN": self.mark}
    return subprocess.Popen(
      self.command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

  def finish(self, process: subprocess.Popen, *, code: int) -> None:
    errors = process.communicate(timeout=1800)[1].decode()
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
    deadline = time.monotonic() + 600
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

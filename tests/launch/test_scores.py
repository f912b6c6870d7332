"""The small chain's script: its overrides, its book of steps, and a chain of two steps a stage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "scores.py"


def scores(*words, timeout=60):
  return subprocess.run(
    [sys.executable, SCRIPT, *map(str, words)],
    capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT,
  )  # fmt: skip


@pytest.mark.parametrize(
  "word", ["--config.train.steps=5", "--joit.config.train.steps=5", "--joint.train.steps=5", "x"]
)
def test_an_override_of_no_stage_is_refused(tmp_path, word):
  done = scores("--out", tmp_path / "out", word)
  assert done.returncode == 2 and word in done.stderr
  assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  done = scores("--out", tmp_path)
  assert done.returncode == 1 and "was not made by this script" in done.stderr
  assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_a_step_is_done_once_and_never_mixed_with_another(tmp_path):
  """Its data set is built by the first try, and of another size refused by the second."""
  book = tmp_path / "steps.json"
  words = [
    "data",
    "build",
    "data/shapes_world.py:large",
    "--out",
    tmp_path / "data",
    "--count",
    "4",
  ]
  done = {"command": [str(word) for word in words], "seconds": 1.0, "done": True}
  book.write_text(json.dumps({"build shards": done}))
  other = scores("--out", tmp_path, "--count", "5")
  assert other.returncode == 1 and "'build shards' was made by another command" in other.stderr
  assert json.loads(book.read_text()) == {"build shards": done}


@pytest.mark.soak
def test_the_chain_runs_to_its_tables(tmp_path):
  stages = ("tae_image", "tae", "image", "joint", "high", "upsampler")
  short = [f"--{stage}.config.train.steps=2" for stage in stages]
  small = [f"--{stage}.config.train.batch_size=2" for stage in stages]
  few = ("--count", 64, "--samples", 2, "--distances", 2)
  done = scores("--out", tmp_path, *few, *short, *small, timeout=3600)
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((tmp_path / "scores.json").read_text())
  assert set(results["probe"]) == {"originals", "reconstructions", "joint", "high", "upsampled"}
  assert results["probe"]["originals"]["all"] == 1.0
  assert set(results["errors"]) == {"video", "video_32", "image", "image_128"}
  assert results["fvd"]["weights"] == "random" and "no FVD" in done.stdout
  assert set(results["fvd"]["values"]) == {"reconstructions", "high"}

"""The small chains' scripts: overrides, the book of steps, and chains of two steps a stage."""

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


@pytest.mark.soak
def test_imagen_videos_seven_models_and_their_students_run_to_the_tables(tmp_path):
  models = ("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3")
  words = []
  for name in (*models, "base_video"):
    words += [f"--{name}.config.train.steps=2", f"--{name}.config.sample.steps=4"]
  for name in models:
    rounds = f"--{name}_distilled.config.stage.fields.distillation"
    words += [f"{rounds}.guidance_steps=1", f"{rounds}.round_steps=1", f"{rounds}.start=16"]
    train = f"--{name}_distilled.config.train"
    words += [f"{train}.steps=2", f"{train}.optimizer.restarts=(1,)"]
  small = [
    f"--{name}.config.train.batch_size=2"
    for name in (*models, "base_video", *(f"{name}_distilled" for name in models))
  ]
  script, few = SCRIPT.with_name("scores_imagen_video.py"), ("--count", 64, "--samples", 2)
  done = subprocess.run(
    [sys.executable, script, "--out", tmp_path, *map(str, few), *words, *small],
    capture_output=True, text=True, timeout=7200, check=False, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((tmp_path / "scores.json").read_text())
  cascades = ("teachers", "distilled", "joint_base", "clips_alone")
  assert set(results["evaluations"]) == set(results["seconds_a_clip"]) == set(cascades)
  readable = {name.split()[1].removesuffix("_distilled") for name in results["probe"]}
  assert readable == {"ssr2", "tsr2", "tsr3", "ssr3"}
  assert set(results["held_out_loss"]) == {"base", "base_video"}
  assert set(results["gap"]) == {f"{name}_distilled" for name in models}

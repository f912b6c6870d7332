"""The Slurm recipe: its shell on a srun that plays the tasks, and all of it on a real Slurm."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
SRUN = """#!/usr/bin/env bash
trap '' TERM
printf '%s\\n' "$@" > "$RECORD/srun.txt"
sleep "${SECONDS_TO_SAVE:-0}"
exit "$CODE"
"""


@pytest.fixture
def start(tmp_path):
  """Starts the recipe as Slurm would, with srun and scontrol that only record."""
  (tmp_path / "srun").write_text(SRUN)
  (tmp_path / "scontrol").write_text('#!/usr/bin/env bash\necho "$*" >> "$RECORD/scontrol.txt"\n')
  for name in ("srun", "scontrol"):
    (tmp_path / name).chmod(0o755)

  def start(*words, **environment):
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
      ["bash", str(ROOT / "launch/slurm.sbatch"), *words],
      env={**os.environ, "PATH": path, "RECORD": str(tmp_path), "SLURM_JOB_ID": "7", **environment},
      stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

  return start


@pytest.mark.parametrize("code, requeued", [(0, False), (2, False), (5, False), (143, True)])
def test_the_job_ends_with_its_tasks_code_and_is_queued_again_only_if_they_saved(
  start, tmp_path, code, requeued
):
  assert start("--config", "c.py", CODE=str(code)).wait(60) == code
  told = tmp_path / "scontrol.txt"
  assert (told.exists() and told.read_text() == "requeue 7\n") == requeued


def test_arguments_reach_vidgen_as_they_were_given(start, tmp_path):
  words = ["--config", "c.py:30b", "--workdir", "a b;$(id)*"]
  assert start(*words, CODE="0").wait(60) == 0
  told = (tmp_path / "srun.txt").read_text().splitlines()
  assert told[-len(words) - 4 :] == ["vidgen", "train", "--coordinator", "auto", *words]


def test_the_shell_outlives_a_sigterm_until_the_tasks_have_saved(start, tmp_path):
  process = start(CODE="143", SECONDS_TO_SAVE="2")
  while not (tmp_path / "srun.txt").exists():
    assert process.poll() is None
    time.sleep(0.05)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
  assert process.poll() is None
  assert process.wait(60) == 143
  assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


@pytest.mark.soak
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("by", ["priority", "requeue"])
def test_a_preempted_job_is_queued_again_resumes_and_completes(tmp_path, by):
  command = [sys.executable, "launch/slurm_local.py", "--out", str(tmp_path / "out"), "--by", by]
  done = subprocess.run(
    [*command, "--seconds", "900"], cwd=ROOT, capture_output=True, text=True, timeout=1000
  )
  assert done.returncode == 0, done.stderr[-6000:]
  assert "is COMPLETED, restarts 1" in done.stdout
  assert "saved and resumed at step " in done.stdout

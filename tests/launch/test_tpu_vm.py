"""The gcloud commands of launch/tpu_vm.sh, seen by a gcloud that only records its arguments."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
  record.write(json.dumps(sys.argv[1:]) + "\\n")
if "describe" in sys.argv:
  print(os.environ.get("STATE", "ACTIVE"))
"""
TRAIN = ["--config", "c.py:30b", "--data", "/bucket/a b", "--workdir", "/bucket/$(touch x);'\"*"]


@pytest.fixture
def start(tmp_path):
  """Starts the script; gives what became of it and what gcloud was told."""
  (tmp_path / "gcloud").write_text(FAKE.format(python=sys.executable))
  (tmp_path / "gcloud").chmod(0o755)
  record = tmp_path / "record"

  def start(*words, **environment):
    done = subprocess.run(
      [str(ROOT / "launch/tpu_vm.sh"), *words],
      env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
           "RECORD": str(record), "POLL": "0", **environment},
      cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    calls = record.read_text().splitlines() if record.exists() else []
    return done, [json.loads(call) for call in calls]

  return start


NAMES = ("run1", "us-east5-a", "v5p-256", "v2-alpha-tpuv5")


def test_a_dry_run_calls_nothing_and_prints_what_a_real_one_calls(start):
  dry, none = start(*NAMES, "--", *TRAIN)
  assert dry.returncode == 0 and none == []
  _, calls = start(*NAMES, "--", *TRAIN, RUN="1")
  printed = [shlex.split(line)[1:] for line in dry.stdout.splitlines()]
  told = [call for call in calls if "describe" not in call]
  same = [(a, b) for a, b in zip(printed, told, strict=True) if "scp" not in a]  # a temporary file
  assert len(same) == 3 and all(a == b for a, b in same)


def test_it_creates_waits_copies_installs_and_trains_on_all_workers(start):
  done, calls = start(*NAMES, "--", *TRAIN, RUN="1", SPOT="1", BUCKET="my-bucket")
  assert done.returncode == 0, done.stderr
  verbs = [next(w for w in call if w in ("create", "describe", "scp", "ssh")) for call in calls]
  assert verbs == ["create", "describe", "scp", "ssh", "ssh", "ssh"]
  assert {"--accelerator-type=v5p-256", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(
    calls[0]
  )
  assert all("--worker=all" in call for call in calls[2:])
  assert all("--zone=us-east5-a" in call for call in calls)
  assert "gcsfuse --implicit-dirs my-bucket /bucket" in calls[4][-1]


def test_the_workers_shell_sees_each_argument_as_it_was_given(start, tmp_path):
  _, calls = start(*NAMES, "--", *TRAIN, RUN="1")
  shell = calls[-1][-1].removeprefix("--command=cd vidgen && ")
  show = f"set -- {shell.removeprefix('../venv/bin/vidgen')}; printf '%s\\0' \"$@\""
  done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, cwd=tmp_path)
  assert done.stdout.split("\0")[:-1] == ["train", "--coordinator", "auto", *TRAIN]
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_resource_that_fails_ends_the_wait(start, state):
  done, calls = start(*NAMES, "--", *TRAIN, RUN="1", STATE=state)
  assert done.returncode == 1 and f"run1 is {state}" in done.stderr
  assert len(calls) == 2


def test_the_wait_is_bounded(start):
  done, _ = start(*NAMES, "--", *TRAIN, RUN="1", STATE="WAITING_FOR_RESOURCES", WAIT="0")
  assert done.returncode == 1 and "is WAITING_FOR_RESOURCES after 0 s" in done.stderr


@pytest.mark.parametrize("bad", ["a;b", "$(x)", "-x", "a b"])
def test_a_name_that_is_none_is_refused_before_anything_is_called(start, bad):
  done, calls = start(bad, *NAMES[1:], "--", *TRAIN, RUN="1")
  assert done.returncode == 2 and calls == []
  assert start(*NAMES, "--", *TRAIN, RUN="1", BUCKET=bad)[0].returncode == 2

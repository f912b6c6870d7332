"""launch/local.sh: whose exit code it ends with, what it passes on, and that it always ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# stands for the interpreter: runs one-liners, and for a verb does what the verb's name says
FAKE = """#!/usr/bin/env bash
[[ $1 == -c ]] && exec {python} "$@"
[[ $2 == vidgen.dist.flags ]] && exec "${{@:3}}"
shift 2
process=${{*: -1}}
printf '%s\\n' "$*" > "$RECORD/$process"
case $1 in
  quick) ;;
  one-fails) ((process == 1)) && exit 3; sleep 30 & trap 'kill $!; exit 143' TERM; wait ;;
  deaf) ((process == 1)) && exit 4; trap '' TERM; for i in {{1..60}}; do sleep 0.5; done ;;
  save) trap 'sleep 0.3; exit 143' TERM; for i in {{1..300}}; do sleep 0.1; done ;;
esac
"""


@pytest.fixture
def start(tmp_path):
  """Starts local.sh on an interpreter that only plays the verbs."""
  fake = tmp_path / "python"
  fake.write_text(FAKE.format(python=sys.executable))
  fake.chmod(0o755)

  def start(*words, **environment):
    return subprocess.Popen(
      [str(ROOT / "launch/local.sh"), *words],
      env={**os.environ, "PYTHON": str(fake), "RECORD": str(tmp_path), **environment},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

  return start


def test_each_process_gets_the_command_its_number_and_one_address(start, tmp_path):
  assert start("3", "quick", "a b", "--x").wait(60) == 0
  lines = [(tmp_path / str(i)).read_text().split() for i in range(3)]
  assert [line[:3] for line in lines] == [["quick", "a", "b"]] * 3
  assert [line[-4:] for line in lines] == [
    ["--processes", "3", "--process", str(i)] for i in range(3)
  ]
  addresses = {line[line.index("--coordinator") + 1] for line in lines}
  assert len(addresses) == 1 and addresses.pop().startswith("127.0.0.1:")


def test_one_failure_ends_all_with_its_code(start):
  begin = time.monotonic()
  assert start("3", "one-fails").wait(60) == 3
  assert time.monotonic() - begin < 25  # the others would have slept for 30 s


def test_who_does_not_heed_the_signal_is_killed(start):
  begin = time.monotonic()
  assert start("2", "deaf", GRACE="1").wait(60) == 4
  assert time.monotonic() - begin < 25


def test_sigterm_goes_to_all_and_they_end_saved(start, tmp_path):
  process = start("2", "save")
  while not all((tmp_path / str(i)).exists() for i in range(2)):
    assert process.poll() is None
    time.sleep(0.05)
  time.sleep(0.5)  # their traps are set
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 143


def test_the_time_limit_ends_all(start):
  assert start("2", "save", LIMIT="2").wait(60) == 143


@pytest.mark.parametrize("words", [(), ("2",), ("0", "train"), ("x", "train"), ("2;id", "train")])
def test_bad_usage_ends_with_2(start, words):
  process = start(*words)
  assert process.wait(60) == 2 and "launch/local.sh N train" in process.stderr.read()

"""SIGTERM, sent to real processes: saved and left with 143, alone and in a group of processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_loop import digests

HERE = Path(__file__).parent


def launch(workdir, steps, *, pause=0.05, **environment):
  return subprocess.Popen(
    [sys.executable, HERE / "run_fake.py", workdir, str(steps), str(pause)],
    env={**os.environ, "PYTHONPATH": str(HERE), **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for_step(workdir, step, process, *, seconds=300):
  path = workdir / "train.jsonl"
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if path.exists() and path.read_bytes().count(b"\n") >= step:
      return
    if process.poll() is not None:
      break
    time.sleep(0.02)
  process.kill()
  pytest.fail(f"no step {step}: {process.communicate()}")


def saved(workdir):
  """Steps of whole checkpoints: a save that was killed has a longer name."""
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


def test_a_process_saves_leaves_with_143_and_goes_on_as_if_nothing_had_been(tmp_path):
  process = launch(tmp_path, 400)
  wait_for_step(tmp_path, 5, process)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 143, err
  (step,) = saved(tmp_path)
  assert 5 <= step < 400 and f"step {step} is saved" in err
  lines = (tmp_path / "train.jsonl").read_bytes()
  assert lines.count(b"\n") == step
  # a run that goes on from there equals one that never stopped
  last = step + 5
  for workdir in (tmp_path, tmp_path / "straight"):
    process = launch(workdir, last, pause=0.0)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  assert digests(tmp_path, last) == digests(tmp_path / "straight", last)
  assert (tmp_path / "train.jsonl").read_bytes() == (
    tmp_path / "straight" / "train.jsonl"
  ).read_bytes()


def test_a_second_signal_ends_at_once_and_harms_no_checkpoint(tmp_path):
  process = launch(tmp_path, 400, pause=3.0)
  wait_for_step(tmp_path, 1, process)
  process.send_signal(signal.SIGTERM)  # the loop is waiting for data: it will take a while
  # libraries may have said something before
  assert any("saving at the end of this step" in line for line in process.stderr)
  begin = time.monotonic()
  process.send_signal(signal.SIGTERM)
  process.wait(timeout=30)
  assert process.returncode == 1 and time.monotonic() - begin < 2.0
  process = launch(tmp_path, 3, pause=0.0)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0 and '"done": 3' in out, err


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{sock.getsockname()[1]}"
  processes = [
    launch(tmp_path, 4000, COORDINATOR=address, PROCESS=str(i), DEVICES="2") for i in range(2)
  ]
  wait_for_step(tmp_path, 3, processes[0])
  processes[1].send_signal(signal.SIGTERM)
  errors = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [143, 143], errors
  (step,) = saved(tmp_path)
  assert all(f"step {step} is saved" in error for error in errors)


def test_a_process_that_fails_alone_leaves_with_its_code_and_nobody_hangs(tmp_path):
  """After a checkpoint, so that there is a save to be done with when it leaves."""
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{sock.getsockname()[1]}"
  environment = {"COORDINATOR": address, "DEVICES": "2", "SAVE_EVERY": "2", "HEARTBEAT": "10"}
  processes = [
    launch(tmp_path, 400, PROCESS=str(i), **environment, **({"FAIL_AT": "5"} if i else {}))
    for i in range(2)
  ]
  try:
    error = processes[1].communicate(timeout=300)[1]
    assert processes[1].returncode == 3 and "too many bad samples" in error, error
    processes[0].communicate(timeout=300)
    assert processes[0].returncode not in (0, None)
  finally:
    for process in processes:
      process.kill()
  assert saved(tmp_path)[-1] >= 2

"""Real processes on one machine train as one, end as one, and go on as any other number of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_run import run
from fake_stage import FakeConfig
from run_shards import Fed, NoisyStage, shard_experiment
from test_loop import digests, lines
from test_preemption import saved, wait_for_step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "inputs"))

from shards import (  # noqa: E402 (found by the line above)
  clip_members,
  video_set,
  write_parquet,
  write_tar,
)

from vidgen.train.checkpoint import Checkpoints  # noqa: E402 (sorted with it)

LAST = 16
HEARTBEAT = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """Sixteen clips, and four without a caption, in whose place others are drawn."""
  root = tmp_path_factory.mktemp("data")
  video_set(root, shards=2, per_shard=8, frames=4, size=(8, 8))
  keys = [f"bad{i}" for i in range(4)]
  members = [
    (name, b" " if name.endswith("txt") else data)
    for i, key in enumerate(keys)
    for name, data in clip_members(key, 50 + i, frames=4, size=(8, 8))
  ]
  write_tar(root / "video" / "train" / "00002.tar", members)
  write_parquet(root / "video" / "train" / "00002.parquet", keys)
  return root


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
  """One process that is never stopped."""
  workdir = tmp_path_factory.mktemp("straight")
  one = shard_experiment(steps=LAST, save_every=4)
  run(one, workdir, stage=NoisyStage(FakeConfig()), data=Fed(one, shards, workdir))
  assert 0 < len(lines(workdir / "quarantine.jsonl")) <= 4
  return workdir


def launch(workdir, data, *, processes, devices, steps=LAST, mesh=None, pause=0.0, save_every=4):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  environment = {
    **os.environ, "PYTHONPATH": str(HERE), "DATA": str(data), "COORDINATOR": address,
    "PROCESSES": str(processes), "DEVICES": str(devices), "MESH": json.dumps(mesh or {}),
    "SAVE_EVERY": str(save_every), "HEARTBEAT": str(HEARTBEAT),
  }  # fmt: skip
  return [
    subprocess.Popen(
      [sys.executable, HERE / "run_shards.py", workdir, str(steps), str(pause)],
      env={**environment, "PROCESS": str(process)},
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    for process in range(processes)
  ]  # fmt: skip


def finish(processes, *, code, seconds=300):
  try:
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  codes = [process.returncode for process in processes]
  assert codes == [code] * len(codes), "\n".join(error[-3000:] for error in errors)
  return errors


def fed(workdir):
  """step -> row -> checksum; a row that was made more than once was the same every time."""
  batches = defaultdict(dict)
  for file in sorted(workdir.glob("fed-*.jsonl")):
    for line in lines(file):
      was = batches[line["step"]].setdefault(line["row"], line["checksum"])
      assert was == line["checksum"], line
  return {step: batches[step] for step in sorted(batches)}


def assert_same_course(workdir, straight, *, rel=1e-5):
  """The same examples and noise, bit for bit; losses and parameters but for their last digits."""
  assert fed(workdir) == fed(straight)
  mine, reference = lines(workdir / "train.jsonl"), lines(straight / "train.jsonl")
  assert [e["step"] for e in mine] == [e["step"] for e in reference] == list(range(1, LAST + 1))
  assert [e["noise_bits"] for e in mine] == [e["noise_bits"] for e in reference]
  assert len({e["noise_bits"] for e in mine}) == LAST
  for one, other in zip(mine, reference, strict=True):
    assert one["loss"] == pytest.approx(other["loss"], rel=rel)
  params = [
    jax.tree.leaves(Checkpoints(path / "checkpoints").restore_params("params", step=LAST))
    for path in (workdir, straight)
  ]
  for one, other in zip(*params, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_two_processes_are_fed_disjoint_halves_and_train_as_one(shards, straight, tmp_path):
  finish(launch(tmp_path, shards, processes=2, devices=2, mesh={"fsdp": 4}), code=0)
  halves = [{line["row"] for line in lines(tmp_path / f"fed-{i}.jsonl")} for i in range(2)]
  assert halves == [{0, 1, 2, 3}, {4, 5, 6, 7}]
  assert_same_course(tmp_path, straight)
  mine, reference = digests(tmp_path, LAST), digests(straight, LAST)
  assert mine["data"] == reference["data"]


def test_four_processes_are_preempted_and_two_one_and_four_go_on(shards, straight, tmp_path):
  """On another mesh each time. What each restores is what the one before it saved."""
  processes = launch(tmp_path, shards, processes=4, devices=1, steps=400, pause=0.4, save_every=0)
  wait_for_step(tmp_path, 2, processes[0], seconds=300)
  processes[2].send_signal(signal.SIGTERM)
  errors = finish(processes, code=143)
  (first,) = saved(tmp_path)
  assert all(f"step {first} is saved" in error for error in errors)
  assert first < LAST - 2, "the machine is too slow to stop it in time"
  again, step = Checkpoints(tmp_path / "again"), first
  for processes, devices, mesh, last in (
    (2, 2, {"fsdp": 4}, first + 1),
    (1, 4, {"data": 2, "context": 2}, first + 2),
    (4, 1, {"fsdp": 2, "tensor": 2}, LAST),  # two and two have the same rows
  ):
    expected = digests(tmp_path, step)
    group = launch(tmp_path, shards, processes=processes, devices=devices, mesh=mesh, steps=last)
    finish(group, code=0)
    assert again.latest() == step and again.digests(step) == expected
    step = last
  assert_same_course(tmp_path, straight)


def killed(workdir, shards, *, processes, victim):
  """How many seconds the others live on after one of them is killed."""
  group = launch(workdir, shards, processes=processes, devices=1, steps=4000, pause=0.02)
  try:
    wait_for_step(workdir, 6, group[0], seconds=300)
    group[victim].kill()
    begin = time.monotonic()
    for process in group:
      process.communicate(timeout=HEARTBEAT + 60)
    seconds = time.monotonic() - begin
  finally:
    for process in group:
      process.kill()
  assert all(process.returncode != 0 for process in group)
  assert group[victim].returncode == -signal.SIGKILL
  return seconds


@pytest.mark.parametrize(
  ("processes", "victim"),
  [(2, 1), pytest.param(4, 0, marks=pytest.mark.soak), pytest.param(4, 3, marks=pytest.mark.soak)],
)
def test_when_one_is_killed_all_end_and_the_run_goes_on(
  processes, victim, shards, straight, tmp_path
):
  seconds = killed(tmp_path, shards, processes=processes, victim=victim)
  assert seconds < HEARTBEAT + 30
  newest = max(saved(tmp_path), default=0)  # the first save may not have come to its end
  finish(launch(tmp_path, shards, processes=1, devices=1, steps=newest + 2), code=0)
  assert saved(tmp_path)[-1] == newest + 2
  assert list(fed(tmp_path)) == list(range(1, max(fed(tmp_path)) + 1))  # and what came twice agreed

"""Worker processes: the same batches as without, and a death that is told at once and by name."""

import dataclasses
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from shards import image_set, jpeg, video_set, write_tar

from vidgen.errors import DataError
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.pipeline import make_dataset
from vidgen.inputs.workers import InWork

VIDEO = Bucket(name="video", frames=4, height=16, width=16, fps=4.0)
IMAGE = Bucket(name="image", subset="image", frames=1, height=16, width=16, fps=1.0, weight=0.5)
CONFIG = InputConfig(
  buckets=(VIDEO, IMAGE), text_length=16, caption_dropout=0.5, bad_fraction=1.0, prefetch=2
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """12 clips and 8 images, of which the third is bad."""
  root = image_set(video_set(tmp_path_factory.mktemp("data")))
  members = []
  for i in range(8):
    picture = jpeg(np.full((32, 32, 3), 20 * i, np.uint8)) if i != 2 else b"<html>"
    members += [(f"{i:05d}.jpg", picture), (f"{i:05d}.txt", b"image %d" % i)]
  write_tar(root / "image" / "train" / "00000.tar", members)
  return root


def dataset(data, workers, **change):
  config = dataclasses.replace(CONFIG, workers=workers, **change)
  return make_dataset(config, str(data), batch_size=4, seed=0)


@pytest.fixture(scope="module")
def expected(data):
  """Twelve batches, and the state after each, without workers."""
  iterator, found = iter(dataset(data, 0)), []
  for _ in range(12):
    batch = next(iterator)
    found.append((batch, iterator.get_state()))
  return found


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_and_the_state_do_not_depend_on_workers_or_on_being_killed(
  data, expected, workers
):
  """Stopped after 5 batches, with more in the queues, and begun anew."""
  state, found = None, []
  for stop in (5, 12):
    iterator = iter(dataset(data, workers))
    if state is not None:
      iterator.set_state(json.loads(json.dumps(state)))
    while len(found) < stop:
      batch = next(iterator)
      state = iterator.get_state()
      found.append((batch, state))
    iterator.close()
  for (batch, state), (whole, plain_state) in zip(found, expected, strict=True):
    assert {**state, "workers": 0} == plain_state
    for name in whole:
      assert type(batch[name]) is np.ndarray
      np.testing.assert_array_equal(batch[name], whole[name])


def test_grains_own_checker_with_workers(data):
  grain.experimental.assert_equal_output_after_checkpoint(
    grain.experimental.LimitIterDataset(dataset(data, 1), 3)
  )


def test_a_killed_worker_is_told_within_seconds_and_leaves_no_process(data):
  iterator = iter(dataset(data, 2))
  next(iterator)
  os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
  start = time.monotonic()
  with pytest.raises(DataError, match="worker process died.*exit code -9"):
    for _ in range(100):
      next(iterator)
  assert time.monotonic() - start < 5
  iterator.close()
  assert not multiprocessing.active_children()


def test_bad_samples_of_worker_processes_stop_the_run(data):
  iterator = iter(dataset(data, 1, bad_count=0))
  with pytest.raises(DataError, match="1 bad samples.*image/train/00000.tar, key '00002'"):
    for _ in range(100):
      next(iterator)
  iterator.close()


def test_what_a_dead_process_was_at_is_known():
  notes = InWork()
  pid = os.fork()
  if not pid:
    notes.note("a.tar", "k1")
    notes.note("", "")
    notes.note("b.tar", "k2")
    os.kill(os.getpid(), signal.SIGKILL)
  os.waitpid(pid, 0)
  notes.note("mine.tar", "alive")
  assert notes.of_the_dead() == [("b.tar", "k2")]


PARENT = """
import sys
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.pipeline import make_dataset
if __name__ == "__main__":
  bucket = Bucket(name="image", subset="image", frames=1, height=16, width=16)
  config = InputConfig(buckets=(bucket,), workers=2, bad_fraction=1.0)
  iterator = iter(make_dataset(config, sys.argv[1], batch_size=4, seed=0))
  for _ in range(8):
    next(iterator)
  print("read", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def parent(data, tmp_path):
  script = tmp_path / "parent.py"
  script.write_text(PARENT)
  environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
  process = subprocess.Popen(
    [sys.executable, str(script), str(data)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=environment,
  )
  yield process
  process.kill()
  process.wait()


def test_workers_do_not_die_of_their_parents_signals_from_their_first_moment(parent):
  """Signalled again and again from before Python runs in them until batches have come of both."""
  signalled = set()
  while not select.select([parent.stdout], [], [], 0.005)[0]:
    for worker in workers_of(parent.pid):
      signalled.add(worker)
      os.kill(worker, signal.SIGTERM)
      os.kill(worker, signal.SIGINT)
  assert parent.stdout.readline() == "read\n"
  assert len(signalled) == 2 and signalled == set(workers_of(parent.pid))


def test_workers_do_not_outlive_a_killed_parent(parent):
  assert parent.stdout.readline() == "read\n"
  workers = workers_of(parent.pid)
  assert len(workers) == 2 and all(runs(worker) for worker in workers)
  parent.kill()
  parent.wait()
  end = time.monotonic() + 10
  while any(runs(worker) for worker in workers):
    assert time.monotonic() < end, "workers run on without a parent"
    time.sleep(0.1)


def workers_of(parent: int) -> list[int]:
  """Children that run multiprocessing's entry; not its resource tracker."""
  found = []
  for thread in Path(f"/proc/{parent}/task").iterdir():
    try:
      children = (thread / "children").read_text().split()
      found += [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    except FileNotFoundError:  # that thread or child is gone
      continue
  return sorted(map(int, found))


def runs(pid: int) -> bool:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False

"""A program that trains the fake stage, slowly; for tests that send it signals, or see it stuck."""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", int(os.environ.get("DEVICES", "1")))
if os.environ.get("COORDINATOR"):
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    os.environ["COORDINATOR"], num_processes=2, process_id=int(os.environ["PROCESS"]),
    heartbeat_timeout_seconds=int(os.environ.get("HEARTBEAT", "100")),
  )  # fmt: skip

from fake_run import FakeData, experiment, run  # noqa: E402 (jax is set up before it is used)

from vidgen.errors import DataError, Preempted, VidgenError  # noqa: E402 (likewise)
from vidgen.train.together import leave  # noqa: E402 (likewise)

workdir, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
one = experiment(
  steps=steps, save_every=int(os.environ.get("SAVE_EVERY", "0")), eval_every=0, log_every=1,
  batch_size=16, hang_seconds=float(os.environ.get("HANG", "0")),
)  # fmt: skip
fail_at = int(os.environ.get("FAIL_AT", "-1"))
stuck = {
  "data": lambda: time.sleep(1e6),
  "lock": lambda: ctypes.PyDLL(None).sleep(1_000_000),  # holds Python's lock all the while
}.get(os.environ.get("STUCK", ""))


class Part(FakeData):
  """This process's part of the batch."""

  def __next__(self):
    time.sleep(pause)
    if self.position == fail_at:
      raise DataError("too many bad samples")
    if stuck and self.position == 8:
      stuck()
    batch, count = super().__next__(), jax.process_count()
    size = self.size // count
    first = jax.process_index() * size
    return {name: array[first : first + size] for name, array in batch.items()}


try:
  state = run(one, workdir, data=Part(one))
  print(json.dumps({"done": int(state.step)}))
except VidgenError as error:
  if jax.process_count() > 1 and not isinstance(error, Preempted):
    leave(error, verb="train")
  print(error, file=sys.stderr)
  sys.exit(error.exit_code)

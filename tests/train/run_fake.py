"""A program that trains the fake stage, slowly; for tests that send it signals."""

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
    os.environ["COORDINATOR"], num_processes=2, process_id=int(os.environ["PROCESS"])
  )

from fake_run import FakeData, experiment, run  # noqa: E402 (jax is set up before it is used)

from vidgen.errors import VidgenError  # noqa: E402 (likewise)

workdir, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
one = experiment(steps=steps, save_every=0, eval_every=0, log_every=1, batch_size=16)


class Part(FakeData):
  """This process's part of the batch."""

  def __next__(self):
    time.sleep(pause)
    batch, count = super().__next__(), jax.process_count()
    size = self.size // count
    first = jax.process_index() * size
    return {name: array[first : first + size] for name, array in batch.items()}


try:
  state = run(one, workdir, data=Part(one))
  print(json.dumps({"done": int(state.step)}))
except VidgenError as error:
  print(error, file=sys.stderr)
  sys.exit(error.exit_code)

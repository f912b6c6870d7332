"""One process of a run on real shards, with some bad samples; for tests of several processes.

It notes what it was fed, row by row of the global batch, and saves what it restored once more.
"""

import dataclasses
import json
import os
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
from fake_run import experiment, run
from fake_stage import FakeConfig, FakeStage

from vidgen.config import plain
from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.errors import Preempted, VidgenError
from vidgen.train import loop
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.cluster import find_group, join
from vidgen.train.data import ShardData
from vidgen.train.rows import process_rows
from vidgen.train.together import leave


class NoisyStage(FakeStage):
  """The fake stage, which also tells the bits of some noise: a sum modulo 2**24, in any order."""

  def loss(self, params, batch, rng):
    keys = jax.vmap(jax.random.split)(rng)
    loss, metrics = super().loss(params, batch, keys[:, 0])
    noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys[:, 1])
    bits = jnp.sum(jax.lax.bitcast_convert_type(noise, jnp.uint32), dtype=jnp.uint32)
    return loss, metrics | {"noise_bits": (bits & 0xFFFFFF).astype(jnp.float32)}


def shard_experiment(*, steps, mesh=None, **fields):
  one = experiment(
    buckets=("video",), batch_size=8, steps=steps, mesh=mesh, log_every=1, eval_every=0, **fields
  )
  inputs = dataclasses.replace(one.inputs, text_length=FakeConfig().text_length, bad_fraction=1.0)
  return dataclasses.replace(one, inputs=inputs)


def checksums(batch):
  """One of all that a row holds, for every row."""
  return [
    zlib.crc32(b"".join(batch[name][row].tobytes() for name in sorted(batch)))
    for row in range(len(batch["text"]))
  ]


class Fed(ShardData):
  """Shards that are read slowly, and a file of what came of them."""

  def __init__(self, one, directory, workdir, *, rows=None, pause=0.0):
    self.rows = list(range(one.train.batch_size)) if rows is None else rows
    self.pause, self.file = pause, workdir / f"fed-{jax.process_index()}.jsonl"
    super().__init__(
      one.inputs, str(directory), batch_size=one.train.batch_size, seed=one.train.seed,
      workdir=workdir, rows=self.rows,
    )  # fmt: skip

  def __next__(self):
    time.sleep(self.pause)
    step = self.get_state()["position"] + 1
    batch = super().__next__()
    told = {"processes": jax.process_count(), "step": step}
    with open(self.file, "a") as file:
      for row, checksum in zip(self.rows, checksums(batch), strict=True):
        file.write(json.dumps({**told, "row": row, "checksum": checksum}) + "\n")
    return batch


def save_again(workdir, one):
  """From now on, what `start` restores is saved at once in `again` as well."""
  start = loop.start

  def noted(programs, *, data, **rest):
    state = start(programs, data=data, **rest)
    if int(state.step):
      position = {"iterator": data.get_state(), "description": data.describe()}
      again = Checkpoints(workdir / "again", keep=100)
      again.save(int(state.step), state, position, plain(one))
      again.close()
    return state

  loop.start = noted


def main(workdir, steps, pause):
  process, processes = int(os.environ["PROCESS"]), int(os.environ["PROCESSES"])
  jax.config.update("jax_num_cpu_devices", int(os.environ["DEVICES"]))
  if processes > 1:
    address = os.environ["COORDINATOR"]
    group = find_group({}, coordinator=address, processes=processes, process=process)
    join(group, heartbeat_seconds=int(os.environ["HEARTBEAT"]), timeout_seconds=300)
  mesh = MeshConfig(**json.loads(os.environ["MESH"]))
  one = shard_experiment(steps=steps, mesh=mesh, save_every=int(os.environ["SAVE_EVERY"]))
  save_again(workdir, one)
  try:
    rows = process_rows(one.train.batch_size, mesh=make_mesh(mesh), rules=one.rules)
    data = Fed(one, os.environ["DATA"], workdir, rows=rows, pause=pause)
    run(one, workdir, stage=NoisyStage(FakeConfig()), data=data)
  except Exception as error:
    if jax.process_count() > 1 and not isinstance(error, Preempted):
      leave(error, verb="train")
    if not isinstance(error, VidgenError):
      raise
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))

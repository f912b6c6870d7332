"""Two processes that share the arrays save one checkpoint, with the digests one would write."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
from saved import CONFIG, assert_same_bits, like, state

from vidgen.train.checkpoint import Checkpoints

PROGRAM = """
import sys
import jax
import numpy as np
from saved import CONFIG, like, state
from vidgen.errors import CheckpointError
from vidgen.train import manifest as mf
from vidgen.train.checkpoint import Checkpoints

directory, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 2), ("x", "y"))
abstract = like(state(5), jax.NamedSharding(mesh, jax.P("x", "y")))

def spread(leaf, struct):
  return jax.make_array_from_callback(leaf.shape, struct.sharding, lambda i: np.asarray(leaf)[i])

def check(restored):
  for want, have in zip(jax.tree.leaves(state(5)), jax.tree.leaves(restored.state), strict=True):
    for shard in have.addressable_shards:
      assert np.asarray(shard.data).tobytes() == np.asarray(want)[shard.index].tobytes()
  assert restored.data_state == {"position": 5}

global_state = jax.tree.map(spread, state(5), abstract)
assert not global_state.params["block"]["kernel"].is_fully_addressable
checkpoints = Checkpoints(directory, keep=2)
checkpoints.prepare()
try:
  checkpoints.save(5, global_state, {"position": 5 + process}, CONFIG)
  sys.exit("no error")
except CheckpointError as error:
  assert "the processes are at different positions in the data" in str(error)
checkpoints.save(5, global_state, {"position": 5}, CONFIG)
checkpoints.wait()
assert checkpoints.latest() == 5  # durable on every process when wait returns
check(checkpoints.restore(None, abstract))

if process == 0:  # the first process alone fails to write the manifest of step 6
  write, mf.write = mf.write, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
checkpoints.save(6, global_state, {}, CONFIG)
try:
  checkpoints.wait()
  sys.exit("no error")
except CheckpointError as error:
  assert ("No space left" in str(error)) == (process == 0), error
if process == 0:
  mf.write = write
checkpoints.save(6, global_state, {}, CONFIG)
checkpoints.wait()
checkpoints.close()
assert checkpoints.steps() == [5, 6]
"""


def test_two_processes_save_and_restore_one_checkpoint(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-c", PROGRAM, str(tmp_path / "two"), str(port)]
  processes = [
    subprocess.Popen([*command, str(i)], cwd=Path(__file__).parent, stderr=subprocess.PIPE)
    for i in range(2)
  ]
  try:
    errors = [process.communicate(timeout=900)[1].decode() for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, error in zip(processes, errors, strict=True):
    assert process.returncode == 0, error[-3000:]

  checkpoints = Checkpoints(tmp_path / "two")
  checkpoints.verify(5)
  mesh = jax.sharding.Mesh(jax.devices()[:8], ("x",))
  abstract = like(state(5), jax.NamedSharding(mesh, jax.P(None, "x")))
  restored = checkpoints.restore(5, abstract)
  assert_same_bits(restored.state, state(5))
  assert restored.data_state == {"position": 5}
  one = Checkpoints(tmp_path / "one")
  one.save(5, state(5), {"position": 5}, CONFIG)
  one.close()
  assert one.digests(5) == checkpoints.digests(5)

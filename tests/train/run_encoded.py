"""One of two processes that encode batches together; for a test of several processes."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from test_encoded import experiment, open_it

from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.systems import make_stage
from vidgen.train.cluster import find_group, join
from vidgen.train.encoded import on_host
from vidgen.train.programs import Programs


def main(root, out):
  process = int(os.environ["PROCESS"])
  jax.config.update("jax_num_cpu_devices", 4)
  join(find_group({}, coordinator=os.environ["COORDINATOR"], processes=2, process=process))
  one = experiment(root)
  mesh = make_mesh(one.mesh)
  data = open_it(one, root, out)
  with on_mesh(mesh, rules=one.rules, attention=one.attention):
    programs = Programs(one, stage=make_stage(one.stage.name, one.stage.fields), mesh=mesh)
    parts = {"held_out": data.held_out(1)[0], "examples": data.examples(2)}
    batch = next(data)
    _, whole = programs.put(batch)
  parts["batch"] = on_host(batch)
  assert all(array.shape[0] == one.train.batch_size for array in whole.values())
  data.close()
  arrays = {f"{part}/{n}": np.asarray(a) for part in parts for n, a in parts[part].items()}
  np.savez(out / f"{process}.npz", **arrays)


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]))

"""One of three processes, each with its share of the features, the last with none."""

import sys

import numpy as np


def features():
  x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
  x[40:] *= 2.0**-30  # one process has places that the others lack
  return x


if __name__ == "__main__":
  import jax

  jax.distributed.initialize(sys.argv[1], num_processes=3, process_id=int(sys.argv[2]))

  from vidgen.evals.moments import Moments, gathered

  mine = Moments(5)
  mine.add([features()[:40], features()[40:], features()[:0]][int(sys.argv[2])])
  print(gathered(mine).digest())

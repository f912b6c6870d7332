"""Decodes noise to so many frames, as a stream or whole; prints the process's peak memory.

python tests/models/run_decode.py stream|whole FRAMES
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.models.tae import TAE
from vidgen.nn.partition import unboxed
from vidgen.systems.movie_gen.decoding import stream_decode

SIDE = 12  # latents: 96 pixels


def main(how: str, frames: int) -> None:
  network = TAE(channels=(16, 16, 16, 16), blocks=1, latent_channels=4, groups=4)
  params = unboxed(jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 8, 3)))["params"])
  length = -(-frames // 8)
  latents = np.random.default_rng(0).standard_normal((1, length, SIDE, SIDE, 4)).astype(np.float32)
  if how == "stream":
    count = sum(part.shape[1] for part in stream_decode(network, params, latents, frames=frames))
  else:
    decode = jax.jit(lambda p, x: network.apply({"params": p}, x, method="decode"))
    made: Any = decode(params, latents)
    count = np.asarray(made)[:, :frames].shape[1]
  assert count == frames
  print(peak())


def peak() -> int:
  """The most bytes this process has held; getrusage would count its parent's before the fork."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
  # Threads that allocate in arenas of their own would be most of what is measured.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  main(sys.argv[1], int(sys.argv[2]))

"""`vidgen bench sampler` and `checkpoint`: what sampling and keeping a stage takes."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _experiment(settings: argparse.Namespace, overrides: list[str]) -> Any:
  from vidgen.config import load_config, parse_overrides
  from vidgen.train.experiment import resolve

  return resolve(load_config(settings.config, parse_overrides(overrides)))


def measure_sampler(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """The program behind `vidgen sample`, up to the latents, with fresh parameters.

  Its FLOPs are those of the network's evaluations: two a step, where there is guidance.
  """
  import jax
  import numpy as np

  from vidgen.cli.bench.record import line, measure_program
  from vidgen.dist.devices import peak_flops
  from vidgen.dist.mesh import make_mesh, on_mesh
  from vidgen.systems import make_stage
  from vidgen.systems.sampling import input_spec, sampling_flops
  from vidgen.train.programs import Programs

  experiment, size = _experiment(settings, overrides), settings.batch_size
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  mesh = make_mesh(experiment.mesh)
  with on_mesh(mesh, rules=experiment.rules, attention=experiment.attention):
    programs = Programs(experiment, stage=stage, mesh=mesh)
    traced = programs.trace_sample(size)
    params = jax.jit(stage.init, out_shardings=programs.shardings.ema)(jax.random.key(0))
    inputs = {name: array.zeros() for name, array in input_spec(stage, size).items()}
    found = measure_program(
      traced,
      (params, inputs, np.uint32(0), np.arange(size, dtype=np.uint32)),
      flops=sampling_flops(stage, experiment.sample, batch_size=size),
      devices=jax.device_count(),
      peak=experiment.train.peak_flops or peak_flops(jax.devices()[0].device_kind),
      warmup=settings.warmup,
      repeats=settings.repeats,
    )
  figures = {
    "name": experiment.name,
    "sizes": {
      "batch_size": size,
      "bucket": stage.buckets[0],
      "steps": experiment.sample.steps,
      "guidance_scale": experiment.sample.guidance_scale,
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    },
    "samples_per_second": size / found["median_seconds"],
    "measures": {"sample": found},
  }
  said = [line("sample", found), f"samples        {figures['samples_per_second']:9.2f} a second"]
  return figures, iter(said)


def _random(abstract: Any) -> Any:
  """A state of random floats and zero counters: fresh moments are zeros, and take no disk."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  rng = np.random.default_rng(0)

  def made(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    floats = jnp.issubdtype(leaf.dtype, jnp.floating)
    values = rng.standard_normal(leaf.shape, np.float32) if floats else np.zeros(leaf.shape)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

  return jax.tree.map(made, abstract)


def measure_checkpoint(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """Saves of a training state of random numbers into a temporary folder, and verified restores.

  "blocked" is what the loop waits for, "durable" until it is on the disk; restores find the files
  in the system's cache.
  """
  import jax

  from vidgen.cli.bench.record import line, spread
  from vidgen.config import plain
  from vidgen.dist.mesh import make_mesh, on_mesh
  from vidgen.systems import make_stage
  from vidgen.train.checkpoint import Checkpoints
  from vidgen.train.programs import Programs

  experiment = _experiment(settings, overrides)
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  mesh = make_mesh(experiment.mesh)
  times = {"blocked": [], "durable": [], "restore": []}
  with (
    tempfile.TemporaryDirectory() as scratch,
    on_mesh(mesh, rules=experiment.rules, attention=experiment.attention),
  ):
    programs = Programs(experiment, stage=stage, mesh=mesh)
    state = jax.block_until_ready(_random(programs.abstract))
    checkpoints = Checkpoints(scratch, keep=1)
    for step in range(1, settings.repeats + 1):
      begin = time.perf_counter()
      checkpoints.save(step, state, {}, plain(experiment))
      times["blocked"].append(time.perf_counter() - begin)
      checkpoints.wait()
      times["durable"].append(time.perf_counter() - begin)
    for _ in range(settings.repeats):
      begin = time.perf_counter()
      jax.block_until_ready(checkpoints.restore(None, programs.abstract).state)
      times["restore"].append(time.perf_counter() - begin)
    checkpoints.close()
    size = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
  measures = {name: spread(seconds) for name, seconds in times.items()}
  figures = {
    "name": experiment.name,
    "sizes": {
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params)),
      "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
      "bytes_on_disk": size,
    },
    "measures": measures,
  }
  said = [line(name, found) for name, found in measures.items()]
  return figures, iter([*said, f"on the disk    {size / 2**20:9.1f} MiB"])

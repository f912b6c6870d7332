"""A run directory with a checkpoint of a tiny text-to-video model; for tests of what reads one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidgen.config import plain
from vidgen.systems import make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import Experiment, resolve

FIELDS = {
  "layers": 1, "width": 32, "heads": 2, "mlp_width": 32, "patch": (4, 4, 4), "max_grid": (2, 4, 4),
  "latent": None, "text_streams": {}, "dtype": "float32", "remat": "none",
  "text_encoder": {"length": 32, "words": 8, "width": 16, "heads": 2, "mlp_width": 16},
  "buckets": [{"name": "video", "frames": 8, "height": 16, "width": 16}],
}  # fmt: skip


@functools.cache
def experiment() -> Experiment:
  inputs = {
    "buckets": [{"name": "video", "frames": 8, "height": 16, "width": 16, "fps": 4.0}],
    "text_length": 32,
  }
  return resolve(
    ConfigDict(
      {
        "name": "tiny",
        "stage": {"name": "movie_gen/t2v", "fields": FIELDS},
        "inputs": inputs,
        "train": {"batch_size": 8},
        "sample": {"steps": 3, "guidance_scale": 2.0, "linear_steps": 6},
      }
    )
  )


@functools.cache
def stage():
  return make_stage("movie_gen/t2v", experiment().stage.fields)


@functools.cache
def params(seed: int = 0):
  """Random parameters; those that start at zero are moved, so that every part has a say."""
  made = jax.jit(stage().init)(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(made)
  keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
  moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.device_get(jax.tree.unflatten(tree, moved))


def write_run(workdir, *, step: int = 5, ema=None):
  """Saves a checkpoint; "params" and "ema" differ."""
  state = {
    "params": params(1), "ema": params(0) if ema is None else ema,
    "opt_state": {}, "step": jnp.int32(step),
  }  # fmt: skip
  checkpoints = Checkpoints(workdir / "checkpoints")
  checkpoints.save(step, state, {"position": step}, plain(experiment()))
  checkpoints.close()
  return workdir


def changed(**fields) -> Experiment:
  stage = {**experiment().stage.fields, **fields}
  return dataclasses.replace(
    experiment(), stage=dataclasses.replace(experiment().stage, fields=stage)
  )

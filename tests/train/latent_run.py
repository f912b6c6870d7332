"""A short run of a tiny autoencoder on ShapesWorld, and stages on its latents; for tests."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidgen.cli import main
from vidgen.config import plain
from vidgen.dist.mesh import make_mesh
from vidgen.inputs.build import build_dataset, load_recipe
from vidgen.systems import make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.encoded import open_data
from vidgen.train.experiment import resolve
from vidgen.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"video": 9, "image": 1}


def buckets(**more):
  return [{"name": n, "frames": t, "height": 16, "width": 16, **more} for n, t in SHAPES.items()]


def inputs(**more):
  found = [{**b, "subset": "video", "fps": 8.0} for b in buckets()]
  return {"buckets": found, "caption_dropout": 0.0, "shuffle": False, "text_length": 96, **more}


def autoencoder():
  fields = {
    "channels": [4, 8, 8, 8], "blocks": 1, "latent_channels": 4, "groups": 4,
    "buckets": buckets(), "perceptual_weight": 0.0, "discriminator": None, "gan_weight": 0.0,
    "dtype": "float32", "remat": "none",
  }  # fmt: skip
  return resolve(ConfigDict({
    "name": "tae", "stage": {"name": "movie_gen/tae", "fields": fields}, "inputs": inputs(),
    "train": {"steps": 2, "batch_size": 8, "eval_every": 0},
  }))  # fmt: skip


def t2v(workdir="", **train_fields):
  fields = {
    "layers": 1, "width": 16, "heads": 2, "mlp_width": 16, "patch": [1, 1, 1],
    "max_grid": [2, 2, 2], "latent": {"channels": 4}, "text_streams": {},
    "text_encoder": {"length": 96, "words": 4, "width": 8, "mlp_width": 8, "heads": 2},
    "buckets": buckets(), "dtype": "float32", "remat": "none",
  }  # fmt: skip
  return resolve(ConfigDict({
    "name": "t2v", "stage": {"name": "movie_gen/t2v", "fields": fields},
    "inputs": inputs(autoencoder={"workdir": str(workdir)}),
    "train": {"steps": 2, "batch_size": 8, "eval_batches": 2, **train_fields},
    "sample": {"steps": 2, "linear_steps": 2},
  }))  # fmt: skip


def build_data(folder, *, count=24, **subsets):
  recipe = load_recipe(str(ROOT / "data/shapes_world.py:single"))
  recipe = dataclasses.replace(recipe, count=count, subsets=subsets or {"video": 1.0})
  build_dataset(dataclasses.replace(recipe, shard_size=16), folder, seed=0, workers=1)
  return folder


def train_autoencoder(data, folder):
  one = autoencoder()
  train(one, stage=make_stage(one.stage.name, one.stage.fields), workdir=folder,
        data=open_data(one, str(data), workdir=folder, mesh=make_mesh(one.mesh)))  # fmt: skip
  return folder


def untrained_autoencoder(folder, *, seed=0):
  """A run of which nothing was trained: its checkpoint has the parameters as they are drawn."""
  one = autoencoder()
  stage = make_stage(one.stage.name, one.stage.fields)
  params = jax.device_get(jax.jit(stage.init)(jax.random.key(seed)))
  state = {"params": params, "ema": params, "opt_state": {}, "step": jnp.int32(0)}
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(0, state, {"position": 0}, plain(one))
  checkpoints.close()
  return folder


def write_config(path, experiment):
  """A config file of an experiment."""
  path.write_text(
    "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
    f"  return ConfigDict(json.loads({json.dumps(plain(experiment))!r}))\n"
  )
  return path


def measure(data, run, config):
  """`vidgen data latents`."""
  command = ["data", "latents", str(data), "--config", str(config), "--autoencoder", str(run)]
  assert main([*command, "--count", "16", "--batch-size", "8"]) == 0

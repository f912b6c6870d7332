"""What an upsampler trains on: both clips encoded alike, some small ones reconstructed before."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_loop import lines

from vidgen.dist.mesh import make_mesh
from vidgen.errors import ConfigError
from vidgen.inputs.build import build_dataset, load_recipe
from vidgen.systems import make_stage
from vidgen.systems.movie_gen.upsampler import resized
from vidgen.train.data import ShardData
from vidgen.train.encoded import open_data
from vidgen.train.experiment import resolve
from vidgen.train.loop import train
from vidgen.train.upsampled import Pairs, UpsampledData

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.uniform(-1, 1, (3, 5, 8, 8, 3)), jnp.float32)
LOW = jnp.asarray(RNG.uniform(-1, 1, (3, 5, 4, 4, 3)), jnp.float32)
ROWS = jnp.array([False, True, False])


class Stage:
  """Reconstructs a clip as the mean of its frames, in time strides of 4, times `params`."""

  spatial_stride = 4

  def encode(self, params, video):
    return params * video.mean(axis=1, keepdims=True).repeat(-(-video.shape[1] // 4), axis=1)

  def decode(self, params, latents):
    del params
    return jnp.repeat(latents, 4, axis=1)


def loaded(stage=None) -> Any:
  return types.SimpleNamespace(
    stage=stage or Stage(), params=jnp.float32(2.0), encode=lambda video: 5.0 * video[..., :1]
  )


def test_only_the_rows_of_artifacts_are_reconstructed_and_over_time():
  """Such a small clip is what the autoencoder makes of all its frames together, cut to its length;
  then it is resized and encoded as the clip itself is."""
  made = Pairs(loaded())(VIDEO, LOW, ROWS, reconstruct=True)
  low = LOW.at[1].set(2.0 * LOW[1].mean(axis=0))
  np.testing.assert_allclose(made["latents"], 5.0 * VIDEO[..., :1])
  wanted = 5.0 * resized(low, height=8, width=8)[..., :1]
  np.testing.assert_allclose(made["condition"], wanted, atol=1e-5)


def test_without_artifacts_nothing_is_reconstructed():
  """The autoencoder's stage is not run where no row can ask for it; pixels need none at all."""
  made = Pairs(loaded(types.SimpleNamespace()))(VIDEO, LOW, ROWS, reconstruct=False)
  large = resized(LOW, height=8, width=8)
  np.testing.assert_allclose(made["condition"], 5.0 * large[..., :1], atol=1e-5)
  pixels = Pairs(None)(VIDEO, LOW, ROWS, reconstruct=False)
  assert pixels["video"] is VIDEO
  np.testing.assert_allclose(pixels["condition"], large, atol=1e-6)


def test_artifacts_that_cannot_be_made_are_refused():
  """Without an autoencoder, and of small clips whose sides it does not divide."""
  with pytest.raises(ConfigError, match="needs config.inputs.autoencoder"):
    Pairs(None)(VIDEO, LOW, ROWS, reconstruct=True)
  with pytest.raises(ConfigError, match="not multiples of the autoencoder's 4"):
    Pairs(loaded())(VIDEO, LOW[:, :, :3], ROWS, reconstruct=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A small ShapesWorld."""
  folder = tmp_path_factory.mktemp("data")
  recipe = load_recipe(str(ROOT / "data" / "shapes_world.py:single"))
  recipe = dataclasses.replace(recipe, count=12, subsets={"video": 1.0}, shard_size=8)
  build_dataset(recipe, folder, seed=0, workers=1)
  return str(folder)


def experiment(**inputs):
  """An upsampler of pixels from 8 x 8 to 16 x 16."""
  fields = {
    "layers": 1, "width": 32, "heads": 2, "mlp_width": 32, "patch": (1, 4, 4),
    "max_grid": (4, 4, 4), "latent": None, "text_streams": {}, "dtype": "float32", "remat": "none",
    "text_encoder": {"length": 32, "words": 8, "width": 16, "heads": 2, "mlp_width": 16},
    "buckets": [{"name": "video", "frames": 4, "height": 16, "width": 16}], "overlap": 1,
  }  # fmt: skip
  return resolve(
    ConfigDict(
      {
        "name": "up",
        "stage": {"name": "movie_gen/upsampler", "fields": fields},
        "inputs": {
          "buckets": [{"name": "video", "frames": 4, "height": 16, "width": 16, "fps": 4.0}],
          "text_length": 32, "degradation": {"factor": 2.0}, **inputs,
        },
        "train": {
          "steps": 2, "batch_size": 8, "save_every": 2, "eval_every": 2, "eval_batches": 1,
          "log_every": 1, "sheet_every": 2, "sheet_count": 2, "unsharded_tolerance": 1.0,
          "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        },
        "sample": {"steps": 2, "guidance_scale": 2.0, "linear_steps": 4},
        "mesh": {"data": 2, "fsdp": 4},
      }
    )
  )  # fmt: skip


def opened(one, data, workdir) -> Any:
  return open_data(one, data, workdir=workdir, mesh=make_mesh(one.mesh))


def test_a_batch_has_the_small_clips_resized_as_its_condition(data, tmp_path):
  """Of training, of what is held out and of a sheet's examples: what the loader made, resized."""
  one = experiment()
  paired = opened(one, data, tmp_path)
  plain: Any = ShardData(one.inputs, data, batch_size=8, seed=one.train.seed, workdir=tmp_path)
  assert isinstance(paired, UpsampledData) and paired.names == {
    "video", "condition", "text", "text_mask", "fps"
  }  # fmt: skip
  try:
    pairs: list[Any] = [
      (next(paired), next(plain)),
      (paired.held_out(1)[0], plain.held_out(1)[0]),
      (paired.examples(3), plain.examples(3)),
    ]
    for made, batch in pairs:
      assert set(made) == paired.names
      np.testing.assert_array_equal(made["video"], batch["video"])
      large = resized(jnp.asarray(batch["low"]), height=16, width=16)
      np.testing.assert_allclose(made["condition"], large, atol=1e-6)
  finally:
    paired.close()
    plain.close()


def test_a_position_in_the_data_comes_back(data, tmp_path):
  """Degraded clips too: from a state, the next batch is the same to the bit."""
  first, again = opened(experiment(), data, tmp_path), opened(experiment(), data, tmp_path)
  try:
    next(first)
    again.set_state(first.get_state(), changed=False)
    wanted, found = next(first), next(again)
    for name, array in wanted.items():
      np.testing.assert_array_equal(found[name], array, err_msg=name)
  finally:
    first.close()
    again.close()


def test_an_upsampler_trains(data, tmp_path):
  """Two steps, the held-out loss after them, and a sheet of upsampled examples."""
  one = experiment()
  stage = make_stage(one.stage.name, one.stage.fields)
  train(one, stage=stage, data=opened(one, data, tmp_path), workdir=tmp_path)
  found = lines(tmp_path / "train.jsonl")
  assert [line["step"] for line in found if "loss" in line] == [1, 2]
  assert np.isfinite([line["held_out_loss"] for line in found if "held_out_loss" in line]).all()
  assert list(tmp_path.glob("**/*.png"))


def test_artifacts_need_an_autoencoder(data, tmp_path):
  """Asked for without one, the first batch says which keys disagree."""
  paired = opened(experiment(degradation={"artifacts": 0.5}), data, tmp_path)
  try:
    with pytest.raises(ConfigError, match=r"degradation\.artifacts"):
      next(paired)
  finally:
    paired.close()

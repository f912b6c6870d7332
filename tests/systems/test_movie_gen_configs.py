"""The shipped recipes of Movie Gen Video: every variant builds, and is the size it says."""

import functools
import math
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from vidgen.config import load_config, plain
from vidgen.systems import make_stage
from vidgen.train.experiment import from_plain, resolve

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "movie_gen"

# Parameters of each variant, all networks of the stage.
PARAMETERS = {
  "ablation_192:5b": 4_921_119_744,
  "ablation_192:5b.2": 4_921_119_744,
  "image_1024:30b": 29_303_568_384,
  "image_1024:30b.tune": 29_303_568_384,
  "image_1024:7b": 6_990_088_320,
  "sft:30b": 29_303_568_384,
  "t2i_256:30b": 29_302_585_344,
  "t2i_256:tiny": 2_371_840,
  "t2v_256:30b": 29_302_781_952,
  "t2v_256:30b.2": 29_302_781_952,
  "t2v_256:5b": 4_921_261_056,
  "t2v_256:1b": 934_067_712,
  "t2v_256:tiny": 2_393_216,
  "t2v_256:tiny_latent": 2_371_840,
  "t2v_768:30b": 29_303_568_384,
  "t2v_768:30b.2": 29_303_568_384,
  "t2v_768:30b.3": 29_303_568_384,
  "t2v_768:30b.4": 29_303_568_384,
  "t2v_768:5b": 4_921_654_272,
  "t2v_768:1b": 934_264_320,
  "t2v_768:tiny": 4_651_200,
  "t2v_768:tiny_latent": 2_372_864,
  # the autoencoder, 114,472,801 and of images 83,819,683; LPIPS, 14,716,160; the discriminator
  "tae:video": 131_954_594,
  "tae:video.outliers": 131_954_594,
  "tae:image": 101_301_476,
  "tae:tiny_image": 2_104_208,
  "tae:tiny": 3_014_752,
  "upsampler:7b": 6_990_295_680,
  "upsampler:tiny": 1_859_072,
}


@functools.cache
def shipped(name):
  """The experiment and the stage of "file:variant"."""
  file, _, variant = name.partition(":")
  experiment = resolve(load_config(f"{CONFIGS}/{file}.py:{variant}"))
  return experiment, make_stage(experiment.stage.name, experiment.stage.fields)


@functools.cache
def shapes(name):
  """The shape of each parameter by its name."""
  params = jax.eval_shape(shipped(name)[1].init, jax.random.key(0))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def test_the_list_has_every_variant_of_every_file():
  found = [
    f"{path.stem}:{variant}"
    for path in sorted(CONFIGS.glob("*.py"))
    for variant in runpy.run_path(str(path))["VARIANTS"]
  ]
  assert sorted(found) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_config_resolves_and_its_two_halves_agree(name):
  """The input pipeline makes the shapes that the stage eats; its JSON form is the same config."""
  experiment, stage = shipped(name)
  assert from_plain(plain(experiment)) == experiment
  sides = ("frames", "height", "width")
  made, eaten = (
    {bucket.name: tuple(getattr(bucket, side) for side in sides) for bucket in buckets}
    for buckets in (experiment.inputs.buckets, stage.config.buckets)
  )
  assert set(made.values()) == set(eaten.values())
  assert {name: made.get(name) for name in eaten} == eaten
  # a batch is told by its shape
  assert len(set(eaten.values())) == len(eaten)
  if getattr(stage.config, "text_encoder", None) is not None:
    assert experiment.inputs.text_length == stage.config.text_encoder.length


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_config_has_as_many_parameters_as_it_says(name):
  assert sum(math.prod(shape) for shape in shapes(name).values()) == PARAMETERS[name]


def test_all_convolutions_of_the_autoencoders_losses_are_in_bfloat16():
  """LPIPS among them: one in float32 takes a TPU six passes, and its compiler 41 s against 8."""
  _, stage = shipped("tae:image")
  params = jax.eval_shape(stage.init, jax.random.key(0))
  batch = {name: array.struct() for name, array in stage.batch_spec(1, "image").items()}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  text = jax.jit(stage.loss).lower(params, batch, keys).as_text()
  results = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]+x(\w+)>", text)
  assert len(results) > 50 and set(results) == {"bf16"}


@pytest.mark.parametrize("name", [name for name in PARAMETERS if not name.startswith("tae")])
def test_mgv_2_every_bucket_finds_its_positions_and_divides_over_its_devices(name):
  experiment, stage = shipped(name)
  c = stage.config
  for bucket in c.buckets:
    grid = c.grid(c.latent_shape(bucket)[:3])
    assert all(side <= most for side, most in zip(grid, c.max_grid, strict=True)), bucket
    if c.latent is not None and c.patch == (1, 2, 2) and c.latent.temporal_stride == 8:
      frames = -(-bucket.frames // 8)
      assert np.prod(grid) == frames * bucket.height * bucket.width // 256
    mesh = experiment.mesh
    assert np.prod(grid) % (mesh.context * mesh.tensor) == 0, bucket


@pytest.mark.parametrize(
  "before, after",
  [
    ("tae:video", "tae:video.outliers"),
    ("t2i_256:30b", "t2v_256:30b"),
    ("t2v_256:30b", "t2v_256:30b.2"),
    ("t2v_256:30b.2", "t2v_768:30b"),
    ("t2v_768:30b", "t2v_768:30b.2"),
    ("t2v_768:30b.4", "sft:30b"),
    ("t2v_768:30b.4", "image_1024:30b"),
    ("image_1024:30b", "image_1024:30b.tune"),
    ("image_1024:7b", "upsampler:7b"),
    ("ablation_192:5b", "ablation_192:5b.2"),
    ("t2i_256:tiny", "t2v_256:tiny_latent"),
    ("t2v_256:tiny_latent", "t2v_768:tiny_latent"),
  ],
)
def test_a_stage_starts_from_the_one_before_but_for_its_position_tables(before, after):
  """Every array has the shape it had; what is new is the upsampler's condition."""
  old, new = shapes(before), shapes(after)
  differ = {name for name in old if "/positions/" not in name and old[name] != new.get(name)}
  assert not differ
  assert {name for name in new if name not in old} == (
    {"network/patch_condition/kernel"} if after.startswith("upsampler") else set()
  )


def test_the_small_autoencoder_starts_from_the_one_of_images_but_for_its_layers_over_time():
  old, new = shapes("tae:tiny_image"), shapes("tae:tiny")
  assert {name: new.get(name) for name in old} == old
  assert all("temporal" in name or "/resize/" in name for name in new if name not in old)


@pytest.mark.parametrize("name", ["t2v_256:30b", "t2v_768:30b"])
def test_twenty_shapes_of_which_one_batch_in_eleven_is_of_images(name):
  experiment, stage = shipped(name)
  buckets = experiment.inputs.buckets
  assert len(stage.buckets) == 15 + 5
  weights = {
    kind: sum(b.weight for b in buckets if b.subset == kind) for kind in ("image", "video")
  }
  assert weights["video"] == pytest.approx(10 * weights["image"])

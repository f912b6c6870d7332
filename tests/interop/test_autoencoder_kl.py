"""An image autoencoder from diffusers: the same numbers, and inflated the same for every image."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check
from fixtures.autoencoder_inputs import SHAPES, rule
from fixtures.random_weights import draw, draw_like
from safetensors.numpy import save_file

from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.autoencoder_kl import inflate, layout
from vidgen.interop.weight_files import open_weights
from vidgen.models.tae import TAE
from vidgen.nn.partition import unboxed

FIXTURE = Path(__file__).parents[1] / "fixtures" / "autoencoder.npz"


def network(name: str, **fields: Any) -> Any:
  channels, blocks, latent, groups, _, _ = SHAPES[name]
  return TAE(channels, blocks, latent, groups, **fields)


def shapes_of(model: Any) -> Any:
  side = model.spatial_stride
  video = jax.ShapeDtypeStruct((1, model.temporal_stride, side, side, 3), jnp.float32)
  return unboxed(jax.eval_shape(model.init, jax.random.key(0), video)["params"])


def theirs(name: str) -> dict[str, np.ndarray]:
  model = network(name, temporal="none")
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(model))
  return draw_like({k: v.shape for k, v in to_theirs(zeros, layout(model)).items()}, rule)


def loaded(name: str, folder: Path) -> Any:
  model = network(name, temporal="none")
  save_file(theirs(name), folder / "diffusion_pytorch_model.safetensors")
  weights = open_weights(folder / "diffusion_pytorch_model.safetensors")
  return load_params(weights, layout(model), like=shapes_of(model))


def pairs(name: str, folder: Path) -> dict[str, tuple[Any, Any]]:
  params, model = loaded(name, folder), network(name, temporal="none")
  height, width = SHAPES[name][-2:]
  picture = draw(f"{name} picture", (2, 3, height, width), scale=0.5).transpose(0, 2, 3, 1)

  @jax.jit
  def run(params, video):
    found = model.apply({"params": params}, video, method="encode")
    return found, model.apply({"params": params}, found.mean, method="decode")

  found, made = run(params, jnp.asarray(picture)[:, None])
  ours = {"mean": found.mean, "logvar": found.logvar, "made": made}
  with np.load(FIXTURE) as arrays:
    return {
      key: (np.asarray(x)[:, 0], arrays[f"{name}/{key}"].transpose(0, 2, 3, 1))
      for key, x in ours.items()
    }


def agreeing(name: str) -> dict[str, tuple[Any, Any]]:
  with tempfile.TemporaryDirectory() as folder:
    return pairs(name, Path(folder))


CASES = [
  Case(
    "models.tae.TAE",
    "diffusers==0.42.1, AutoencoderKL",
    f"{name}, channels {', '.join(map(str, SHAPES[name][0]))}",
    1e-5,
    functools.partial(agreeing, name),
  )
  for name in SHAPES
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config)
def test_moments_and_pictures_are_those_of_diffusers(case):
  check(case)


def test_inflated_it_is_the_same_for_images_and_keeps_the_layers_over_time(tmp_path):
  name = "two blocks"
  image, model = loaded(name, tmp_path), network(name)
  fresh = unboxed(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 16, 16, 3)))["params"])
  params = inflate(image, fresh)
  assert jax.tree.structure(params) == jax.tree.structure(fresh)
  before, after = (jax.tree_util.tree_leaves_with_path(t) for t in (fresh, params))
  kept = {jax.tree_util.keystr(p) for (p, a), (_, b) in zip(before, after, strict=True) if a is b}
  assert kept and all("temporal" in path for path in kept)
  assert not any("temporal" in jax.tree_util.keystr(p) for p, _ in after if
                 jax.tree_util.keystr(p) not in kept)  # fmt: skip
  video = jnp.asarray(draw("video", (1, 1, 16, 16, 3)))
  plain = network(name, temporal="none")
  found: Any = model.apply({"params": params}, video, method="encode")
  expected: Any = plain.apply({"params": image}, video, method="encode")
  np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)


def test_a_stage_starts_from_a_folder_of_diffusers(tmp_path):
  """Its spatial arrays are those of the file; only the layers over time are drawn."""
  from ml_collections import ConfigDict

  from vidgen.dist.mesh import make_mesh, on_mesh
  from vidgen.systems import make_stage
  from vidgen.train.experiment import resolve
  from vidgen.train.programs import Programs
  from vidgen.train.start import begin

  channels, blocks, latent, groups, *_ = SHAPES["one block"]
  image = loaded("one block", tmp_path)
  shape = {"name": "video", "frames": 4, "height": 16, "width": 16}
  fields = {
    "channels": channels, "blocks": blocks, "latent_channels": latent, "groups": groups,
    "perceptual_weight": 0.0, "gan_weight": 0.0, "discriminator": None, "buckets": [shape],
  }  # fmt: skip
  one = resolve(ConfigDict({
    "name": "tae", "stage": {"name": "movie_gen/tae", "fields": fields},
    "inputs": {"buckets": [{**shape, "subset": "video"}]},
    "train": {"batch_size": 8}, "start": {"files": {"autoencoder": str(tmp_path)}},
  }))  # fmt: skip
  mesh = make_mesh(one.mesh)
  with on_mesh(mesh, rules=one.rules):
    stage = make_stage(one.stage.name, one.stage.fields)
    begun = begin(Programs(one, stage=stage, mesh=mesh))
  read = begun.record["files"]["autoencoder"]["arrays"]
  assert len(read) == len(jax.tree.leaves(image))
  assert begun.record["fresh"] and all("temporal" in name for name in begun.record["fresh"])
  found = jax.device_get(begun.state.params["autoencoder"])
  kernel = found["decoder"]["level_0"]["conv_in"]["spatial"]["kernel"]
  np.testing.assert_array_equal(kernel, image["decoder"]["level_0"]["conv_in"]["spatial"]["kernel"])

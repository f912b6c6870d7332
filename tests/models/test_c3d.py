"""C3D against its twin in PyTorch (fixtures/make_feature_networks.py), and the classic mistakes."""

import functools
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.feature_inputs import C3D_CLIP, picture_bytes, sampled, weights

from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.c3d import c3d_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models.c3d import C3D
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "feature_networks.npz")
LAYERS = ["conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"]
LAYERS += ["pool5", "fc6", "fc7", "logits", "probabilities"]


@functools.cache
def abstract():
  network = C3D()
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]


@functools.cache
def params():
  layout = c3d_layout(C3D())
  zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), np.float32), x.shape), abstract())
  shapes = {name: x.shape for name, x in to_theirs(zeros, layout).items()}
  return load_params(MemoryWeights(weights("c3d", shapes)), layout, like=abstract())


def clip():
  return jnp.asarray(picture_bytes("c3d clip", C3D_CLIP), jnp.float32)


@functools.cache
def features():
  return jax.jit(C3D().apply)({"params": params()}, clip())


def run():
  assert set(features()) == set(LAYERS)
  keys = {f"c3d/{name}": value for name, value in features().items()}
  return {k: (sampled(k, v), FIXTURE[k]) for k, v in keys.items()}


CASES = [
  Case(
    module="models.c3d",
    reference="torch==2.13.0, a twin of the layer table",
    config="16 frames of 112, every layer",
    tolerance=1e-4,
    run=run,
  )
]


def test_every_layer_is_that_of_the_twin():
  check(CASES[0])


def away(tree, name="logits", of=lambda x: x):
  """How far a trap takes a feature from the twin's."""
  found = jax.jit(lambda tree, x: C3D().apply({"params": tree}, x)[name])(tree, of(clip()))
  key = f"c3d/{name}"
  return measure({key: (sampled(key, found), FIXTURE[key])}).relative


def test_trap_flattened_with_channels_last():
  """The weights of fc6 read channels first."""
  tree = dict(params())
  kernel = tree["fc6"]["kernel"].reshape(512, 4, 4, -1).transpose(1, 2, 0, 3)
  tree["fc6"] = {**tree["fc6"], "kernel": kernel.reshape(8192, -1)}
  assert away(tree, "fc6") > 0.1


def test_trap_rgb_without_the_turn_to_bgr():
  assert away(params(), of=lambda x: x[..., ::-1]) > 0.05


def test_trap_mean_clip_left_out():
  tree = {**params(), "offset": jnp.zeros((16, 112, 112, 3))}
  assert away(tree) > 0.05


@pytest.mark.parametrize("batched", [False, True])
def test_the_mean_clip_may_have_a_batch_axis(batched):
  clip = np.arange(3 * 16 * 4, dtype=np.float32).reshape(3, 16, 2, 2)
  given = MemoryWeights({"x_offset": clip[None] if batched else clip})
  source = c3d_layout(C3D(), weights=given).sources["offset"]
  ours = einops.rearrange(given.read(source.names[0]), source.pattern)
  np.testing.assert_array_equal(ours, np.moveaxis(clip, 0, -1))


def test_weights_without_the_mean_clip_are_refused():
  with pytest.raises(CheckpointError, match="no array x_offset"):
    c3d_layout(C3D(), weights=MemoryWeights({"conv1a.weight": np.zeros((2, 2), np.float32)}))


def test_a_clip_of_another_size_is_refused():
  with pytest.raises(ValueError, match="C3D reads 16 x 112 x 112"):
    jax.eval_shape(C3D().apply, {"params": abstract()}, jnp.zeros((1, 15, 112, 112, 3)))

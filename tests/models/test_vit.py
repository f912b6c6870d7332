"""DINO's vision transformer: parity with transformers, what would break it, known sizes, FLOPs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.random_weights import draw

from vidgen.dist.flops import count_flops
from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.vit import vit_from_hf, vit_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models.vit import ViT, vit_flops
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "clip.npz")
CONFIG = json.loads(str(FIXTURE["configs"]))["dino"]
WEIGHTS = json.loads(str(FIXTURE["weights"]))["dino"]
IMAGES = jnp.asarray(draw("images", (2, 24, 24, 3)))


def shapes(network):
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example())["params"])


@functools.cache
def theirs():
  return {key: draw(key, s, scale=scale, offset=o) for key, (s, scale, o) in WEIGHTS.items()}


@functools.cache
def loaded():
  network = vit_from_hf(CONFIG)
  layout = vit_layout(network)
  return network, load_params(MemoryWeights(theirs()), layout, like=shapes(network))


def pairs(network=None):
  own, params = loaded()
  ours = jax.jit((network or own).apply)({"params": params}, IMAGES)
  want = {part: FIXTURE[f"dino/image/{part}"] for part in ("tokens", "hidden")}
  want["embedding"] = want["tokens"][:, 0]
  return {part: (ours[part], value) for part, value in want.items()}


CASES = [
  Case(
    module="models.vit",
    reference=f"{FIXTURE['versions']}, ViTModel",
    config="DINO: 2 layers of 32, 9 patches of 8 x 8, every layer",
    tolerance=1e-5,
    run=pairs,
  )
]


def test_every_layer_equals_transformers():
  check(CASES[0])


@pytest.mark.parametrize(
  "wrong", [{"activation": "quick_gelu"}, {"activation": "gelu_tanh"}, {"norm_epsilon": 1e-4}]
)
def test_a_wrong_field_fails_the_parity_check(wrong):
  """The tanh form of GELU is near enough to be missed by a looser check."""
  network = loaded()[0].clone(**wrong)
  assert measure(pairs(network)).relative > 5 * CASES[0].tolerance


def test_export_gives_back_the_file_and_a_pooler_is_left_alone():
  network, params = loaded()
  back = to_theirs(params, vit_layout(network))
  assert back.keys() == theirs().keys()
  for key, array in theirs().items():
    np.testing.assert_array_equal(back[key], array)
  file = theirs() | {"pooler.dense.weight": np.ones((32, 32), np.float32)}
  again = load_params(MemoryWeights(file), vit_layout(network), like=shapes(network))
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
  ("width", "heads", "patch", "published"),
  [  # Caron et al. 2021, table 1: 21M and 85M, without a head
    (384, 6, 16, 21_665_664),
    (768, 12, 16, 85_798_656),
  ],
)
def test_dinos_sizes(width, heads, patch, published):
  """The exact numbers are those of the tables of timm's vit_small and vit_base without a head."""
  network = ViT(224, patch, width, 12, heads, 4 * width)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes(network))) == published


def test_images_of_another_size_are_refused():
  network, params = loaded()
  with pytest.raises(ValueError, match=r"images of \(16, 24\), not 24 squared"):
    network.apply({"params": params}, IMAGES[:, :16])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "dinov2"}, "model_type 'dinov2' is not 'vit'"),
    ({"qkv_bias": False}, "qkv_bias must be true"),
    ({"hidden_act": "swish"}, "hidden_act 'swish' is none of"),
  ],
)
def test_an_unknown_config_is_refused(change, message):
  with pytest.raises(CheckpointError, match=message):
    vit_from_hf(CONFIG | change)


def test_the_flop_formula_is_what_xla_counts():
  # one layer, as XLA counts a loop's body once; ReLU, as it counts the polynomial of a GELU
  network = ViT(64, 8, 256, 1, 4, 1024, activation="relu")
  inputs, params = network.example(batch=2), shapes(network)

  def embedding(params, images):
    return network.apply({"params": params}, images)["embedding"]

  formula = vit_flops(network, batch=2)
  assert count_flops(embedding, params, *inputs).total == formula
  xla = jax.jit(embedding).lower(params, *inputs).compile().cost_analysis()["flops"]
  assert xla == pytest.approx(formula, rel=0.02)

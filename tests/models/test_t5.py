"""T5 encoders: parity with transformers, what would break it, published sizes, meshes, FLOPs."""

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
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES, check_promise, state_shardings
from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.t5 import t5_from_hf, t5_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models import t5
from vidgen.models.t5 import T5_SIZES, T5Encoder, t5_flops
from vidgen.nn import relative_positions
from vidgen.nn.partition import axes_of, unboxed

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "text_encoders.npz")
CONFIGS = json.loads(str(FIXTURE["configs"]))
WEIGHTS = json.loads(str(FIXTURE["weights"]))
EVERY = {77: 7, 300: 37}  # what is stored of a long text
LENGTHS = 1, 7, 77, 300


def abstract(network):
  return jax.eval_shape(network.init, jax.random.key(0), *network.example())["params"]


def theirs(name):
  return {
    key: draw(key, shape, scale=scale, offset=offset)
    for key, (shape, scale, offset) in WEIGHTS[name].items()
  }


@functools.cache
def loaded(name):
  """The network of a config and its parameters, by the way that files take."""
  network = t5_from_hf(CONFIGS[name])
  like = unboxed(abstract(network))
  return network, load_params(MemoryWeights(theirs(name)), t5_layout(network), like=like)


def encode(network, params, length):
  inputs = jnp.asarray(FIXTURE[f"{length}/ids"]), jnp.asarray(FIXTURE[f"{length}/mask"])
  return jax.jit(network.apply)({"params": params}, *inputs)


def valid(states, length):
  """The states [..., b, l, d] of what is not padding."""
  return np.asarray(states)[..., FIXTURE[f"{length}/mask"][:, :: EVERY.get(length, 1)], :]


def pairs(name, lengths, *, network=None):
  """Ours and transformers', of tokens and of every layer."""
  own, params = loaded(name)
  network = network or own
  found = {}
  for length in lengths:
    ours = encode(network, params, length)
    for part in ("tokens", "hidden"):
      here = np.asarray(ours[part])[..., :: EVERY.get(length, 1), :]
      want = FIXTURE[f"{name}/{length}/{part}"]
      here = here[: len(want)] if part == "hidden" else here  # theirs of the last layer is normed
      found[f"{part} of {length}"] = valid(here, length), valid(want, length)
  return found


def case(name, title, lengths):
  reference = str(FIXTURE["versions"])
  cls = "UMT5EncoderModel" if name == "umt5" else "T5EncoderModel"
  return Case(
    module="models.t5",
    reference=f"{reference}, {cls}",
    config=f"{title}, 3 layers of 24, {'/'.join(map(str, lengths))} tokens, padded, every layer",
    tolerance=1e-5,
    run=lambda: pairs(name, lengths),
  )


CASES = [
  case("t5_v1_1", "T5 v1.1 (and ByT5): gated tanh GELU", LENGTHS),
  case("t5", "first T5: ReLU", LENGTHS),
  case("ul2", "UL2: gated SiLU", LENGTHS),
  case("umt5", "UMT5: positions in every layer", LENGTHS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.split(":")[0])
def test_every_layer_equals_transformers(case):
  check(case)


def with_scaled_scores(monkeypatch, network):
  whole = t5.MultiHeadAttention
  monkeypatch.setattr(t5, "MultiHeadAttention", lambda *a, scale, **k: whole(*a, **k))
  return network


class CentredNorm(t5.RMSNorm):
  """With the mean taken off, as LayerNorm has it."""

  def __call__(self, x):
    return super().__call__(x - x.mean(-1, keepdims=True))


def with_centred_norms(monkeypatch, network):
  monkeypatch.setattr(t5, "RMSNorm", CentredNorm)
  return network


def with_causal_buckets(monkeypatch, network):
  """As in a decoder: earlier keys have all buckets, later ones the bucket of distance 0."""

  def causal(queries, keys, *, buckets, max_distance):
    return np.clip(np.arange(queries)[:, None] - np.arange(keys), 0, buckets - 1)

  monkeypatch.setattr(relative_positions, "relative_buckets", causal)
  return network


def with_fields(**fields):
  return lambda monkeypatch, network: network.clone(**fields)


def without_mask(monkeypatch, network):
  whole = t5.MultiHeadAttention.__call__
  monkeypatch.setattr(
    t5.MultiHeadAttention,
    "__call__",
    lambda self, x, context, *, mask, bias: whole(self, x, context, bias=bias),
  )
  return network


TRAPS = {
  "scores divided by the root of the head size": ("t5_v1_1", with_scaled_scores),
  "LayerNorm": ("t5_v1_1", with_centred_norms),
  "epsilon of 1e-5": ("t5_v1_1", with_fields(norm_epsilon=1e-5)),
  "exact GELU": ("t5_v1_1", with_fields(activation="gelu")),
  "GELU for SiLU": ("ul2", with_fields(activation="gelu_tanh")),
  "padding seen": ("t5_v1_1", without_mask),
  "a decoder's buckets": ("t5_v1_1", with_causal_buckets),
  "distances up to 64": ("t5_v1_1", with_fields(max_distance=64)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_classic_mistake_fails_the_parity_check(trap, monkeypatch):
  name, spring = TRAPS[trap]
  network = spring(monkeypatch, loaded(name)[0])
  wrong = measure(pairs(name, (300,), network=network))
  assert wrong.relative > 10 * case(name, "", (300,)).tolerance


def test_positions_of_the_first_layer_for_all_fail_the_parity_check_of_umt5():
  """UMT5 as if it were T5."""
  network, params = loaded("umt5")
  table = params["blocks"]["positions"]["table"]
  first = {"positions": {"table": jnp.broadcast_to(table[:1], table.shape)}}
  wrong = params | {"blocks": params["blocks"] | first}
  found = {"tokens": (encode(network, wrong, 7)["tokens"], FIXTURE["umt5/7/tokens"])}
  assert measure(found).relative > 10 * case("umt5", "", (7,)).tolerance


def test_bfloat16_is_close_and_its_tokens_are_float32():
  network, params = loaded("t5_v1_1")
  ours = encode(network.clone(dtype="bfloat16"), params, 77)
  assert ours["tokens"].dtype == jnp.float32
  assert ours["hidden"].dtype == jnp.bfloat16
  pair = valid(ours["tokens"][:, :: EVERY[77]], 77), valid(FIXTURE["t5_v1_1/77/tokens"], 77)
  found = measure({"tokens": pair})
  # transformers' own bfloat16 on these weights: cosine 0.99970, difference 4.8e-2
  assert found.cosine > 0.99970
  assert found.relative < 5e-2


def test_padding_and_its_length_do_not_change_a_text():
  network, params = loaded("t5_v1_1")
  ids = jnp.asarray(FIXTURE["77/ids"][1:, :20])
  whole = jax.jit(network.apply)({"params": params}, ids, jnp.ones((1, 20), bool))["tokens"]
  padded = encode(network, params, 77)["tokens"][1:, :20]
  np.testing.assert_allclose(whole, padded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_export_gives_back_the_file(name):
  network, params = loaded(name)
  back, want = to_theirs(params, t5_layout(network)), theirs(name)
  assert back.keys() == want.keys()
  for key, array in want.items():
    np.testing.assert_array_equal(back[key], array)


def test_a_file_of_the_whole_model_and_one_with_the_second_name_of_the_table_are_read():
  network, params = loaded("t5_v1_1")
  file = theirs("t5_v1_1")
  file["encoder.embed_tokens.weight"] = file.pop("shared.weight")
  file |= {"decoder.block.0.layer.0.layer_norm.weight": np.ones(3), "lm_head.weight": np.ones(3)}
  like = unboxed(abstract(network))
  again = load_params(MemoryWeights(file), t5_layout(network), like=like)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "bert"}, "model_type 'bert' is none of t5, mt5, umt5"),
    ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish' is none of"),
    ({"d_kv": None}, "the config has no d_kv"),
  ],
)
def test_an_unknown_config_is_refused(change, message):
  config = {k: v for k, v in (CONFIGS["t5_v1_1"] | change).items() if v is not None}
  with pytest.raises(CheckpointError, match=message):
    t5_from_hf(config)


@pytest.mark.parametrize(("kind", "mlp"), [("t5", "plain"), ("mt5", "gated"), ("umt5", "gated")])
def test_what_a_config_leaves_out_is_the_default_of_its_kind(kind, mlp):
  config = {k: v for k, v in CONFIGS["t5_v1_1"].items() if k != "feed_forward_proj"}
  network = t5_from_hf(config | {"model_type": kind})
  assert (network.mlp, network.activation) == (mlp, "relu" if kind == "t5" else "gelu_tanh")


def count(network):
  return sum(leaf.size for leaf in jax.tree.leaves(abstract(network)))


@pytest.mark.parametrize(
  ("name", "published"),
  [
    ("t5_v1_1_xxl", 4_762_310_656),  # the encoder of PixArt and LTX-Video, by its file's header
    ("umt5_xxl", 5_680_910_336),  # the encoder of Wan 2.1, likewise
  ],
)
def test_encoders_have_their_published_size(name, published):
  assert count(T5_SIZES[name]) == published


def with_decoder(network, *, layers, untied_head=True):
  """Parameters of the whole model around an encoder of shared positions."""
  d, inner = network.width, network.heads * network.head_size
  attention, mlp = 4 * d * inner, 3 * d * network.mlp_width
  decoder = layers * (2 * attention + mlp + 3 * d) + network.buckets * network.heads + d
  return count(network) + decoder + untied_head * network.vocabulary * d


@pytest.mark.parametrize(
  ("name", "decoder", "published", "within"),
  [
    ("t5_v1_1_xl", 24, 2_849_757_184, 0),  # KerasHub's table of T5 v1.1
    ("t5_v1_1_xxl", 24, 11_135_332_352, 0),  # likewise
    ("byt5_small", 4, 299_637_760, 0),  # google/byt5-small, as loaded; 300M in the paper's table 1
    ("byt5_xxl", 12, 12.9e9, 0.05e9),  # Xue et al. 2022, table 1: a decoder a third as deep
    ("ul2_20b", 32, 19.5e9, 0.1e9),  # of Flan-UL2 by its makers, "20B" in Tay et al. 2022
  ],
)
def test_with_a_decoder_they_have_the_published_size_of_the_whole(name, decoder, published, within):
  assert abs(with_decoder(T5_SIZES[name], layers=decoder) - published) <= within


@pytest.mark.parametrize(
  ("name", "mesh", "length", "picked"),
  [
    ("t5_v1_1", {"data": 2, "tensor": 2}, 7, "dense, with a bias"),
    ("t5_v1_1", {"context": 2, "tensor": 2}, 77, "dense, with a bias, gather over context 2"),
    ("umt5", {"context": 2, "tensor": 2}, 7, "dense, with a bias, gather over context 2"),
  ],
  ids=str,
)
def test_it_is_the_same_on_a_mesh(name, mesh, length, picked):
  """Four texts, so that they divide over data and fsdp 2; tokens that do not, over context."""
  network, params = loaded(name)
  ids = jnp.tile(jnp.asarray(FIXTURE[f"{length}/ids"]), (2, 1))
  seen = jnp.tile(jnp.asarray(FIXTURE[f"{length}/mask"]), (2, 1))
  mesh = make_mesh(MeshConfig(**{"data": 1, "fsdp": 2} | mesh))
  axes = axes_of(abstract(network))
  shardings = state_shardings(params, axes, params=params, mesh=mesh, rules=DEFAULT_RULES)
  placed = jax.device_put(params, shardings)
  with on_mesh(mesh, rules=DEFAULT_RULES) as choices:
    found = jax.jit(network.apply)({"params": placed}, ids, seen)
  alone = encode(network, params, length)
  for part in ("tokens", "hidden"):
    got = np.asarray(found[part])[..., :2, :, :]
    np.testing.assert_allclose(got, alone[part], rtol=0, atol=2e-5)
  assert list(choices.picked.values()) == [picked]


@pytest.mark.parametrize("name", T5_SIZES)
def test_default_rules_split_every_size_over_fsdp(name):
  network = T5_SIZES[name]
  params = unboxed(abstract(network))
  mesh = make_mesh(MeshConfig(data=1, fsdp=8))
  axes = axes_of(abstract(network))
  shardings = state_shardings(params, axes, params=params, mesh=mesh, rules=DEFAULT_RULES)
  check_promise(params, shardings)  # a device holds its share of the parameters, within 2%


@pytest.mark.parametrize(
  "fields", [{}, {"mlp": "plain", "activation": "relu"}], ids=["gated", "t5"]
)
def test_the_flop_formula_is_what_xla_counts(fields):
  network = T5Encoder(64, 256, 1, 4, 32, 512, **fields)  # XLA counts a loop's body once
  inputs = network.example(batch=2, length=128)
  params = unboxed(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"])

  def tokens(params, *inputs):
    return network.apply({"params": params}, *inputs)["tokens"]

  formula = t5_flops(network, length=128, batch=2)
  assert count_flops(tokens, params, *inputs).total == formula
  cost = jax.jit(tokens).lower(params, *inputs).compile().cost_analysis()
  assert cost["flops"] == pytest.approx(formula, rel=0.02)

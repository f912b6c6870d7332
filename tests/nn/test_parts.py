"""Norms, linear layers, attention, embeddings and patches, against PyTorch and by property."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check

import vidgen.nn.attention
import vidgen.nn.flash
from vidgen.nn.attention import MultiHeadAttention, attention
from vidgen.nn.embeddings import FactorisedPositions, timestep_embedding
from vidgen.nn.flash import flash
from vidgen.nn.linear import GatedMLP
from vidgen.nn.norm import LayerNorm, RMSNorm
from vidgen.nn.partition import unboxed
from vidgen.nn.patches import grid_of, patchify, unpatchify
from vidgen.nn.remat import rematerialised
from vidgen.nn.weights import fan_in

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "movie_gen.npz")


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def qkv(*, s=6, length=7, b=2, n=3, k=8, seed=0):
  rng = np.random.default_rng(seed)
  shapes = (b, s, n, k), (b, length, n, k), (b, length, n, k)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def rms_norm():
  variables = {"params": {"scale": FIXTURE["norm/scale"]}}
  out = RMSNorm(1e-5).apply(variables, jnp.asarray(FIXTURE["norm/x"]))
  return {"out": (out, FIXTURE["norm/out"])}


def gated_mlp():
  params = {name: {"kernel": FIXTURE[f"mlp/{name}"]} for name in ("gate", "up", "down")}
  hidden = FIXTURE["mlp/gate"].shape[1]
  out = GatedMLP(hidden).apply({"params": params}, jnp.asarray(FIXTURE["mlp/x"]))
  return {"out": (out, FIXTURE["mlp/out"])}


def scaled_dot_products():
  q, k, v = (jnp.asarray(FIXTURE[f"attention/{name}"]) for name in "qkv")
  mask = jnp.asarray(FIXTURE["attention/mask"])
  return {
    "all keys": (attention(q, k, v), FIXTURE["attention/out"]),
    "masked keys": (attention(q, k, v, mask=mask), FIXTURE["attention/masked"]),
  }


def timesteps():
  return {"out": (timestep_embedding(jnp.asarray(FIXTURE["time/t"])), FIXTURE["time/out"])}


LLAMA = "transformers==5.24.0"
ATTENTION = Case(
  "nn.attention", "torch==2.13.0, scaled_dot_product_attention",
  "3 heads of 8, with a mask and without",
  1e-5, scaled_dot_products,
)  # fmt: skip
CASES = [
  Case("nn.norm", f"{LLAMA}, LlamaRMSNorm", "width 24", 1e-5, rms_norm),
  Case("nn.linear", f"{LLAMA}, LlamaMLP", "width 24, hidden 40, SiLU", 1e-5, gated_mlp),
  ATTENTION,
  # angles reach 1000, of which float32 keeps 1e-4
  Case(
    "nn.embeddings",
    "diffusers==0.42.1, get_timestep_embedding",
    "256 sinusoids of 1000 t",
    1e-4,
    timesteps,
  ),  # fmt: skip
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.module)
def test_parts_equal_those_of_others(case):
  check(case)


def test_rms_norm_of_bfloat16_has_float32_statistics():
  # 64 values around 300: squares summed in bfloat16 would be off by percents.
  x = jnp.asarray(300 + np.arange(64), jnp.bfloat16)[None]
  variables = {"params": {"scale": jnp.ones(64)}}
  out = RMSNorm().apply(variables, x)
  exact = np.asarray(x, np.float64) / np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8)


def test_layer_norm_has_zero_mean_and_unit_variance_before_its_affine_part():
  x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 256))
  norm = LayerNorm()
  out = norm.apply({"params": {"scale": jnp.full(256, 2.0), "bias": jnp.full(256, 7.0)}}, x)
  close(out.mean(axis=-1), jnp.full(4, 7.0), 1e-4)
  close(out.std(axis=-1), jnp.full(4, 2.0), 1e-4)


def test_long_attention_equals_pytorchs_too(monkeypatch):
  monkeypatch.setattr(vidgen.nn.attention, "LONG", 0)
  check(ATTENTION)


def test_gradients_of_attention_do_not_depend_on_its_form(monkeypatch):
  q, k, v = qkv()
  mask = jnp.arange(7) < jnp.array([[3], [7]])

  def value(q, k, v):
    return jnp.sum(jnp.sin(attention(q, k, v, mask=mask)))

  short = jax.grad(value, argnums=(0, 1, 2))(q, k, v)
  monkeypatch.setattr(vidgen.nn.attention, "LONG", 0)
  jax.tree.map(close, short, jax.grad(value, argnums=(0, 1, 2))(q, k, v))


def test_memory_of_flash_does_not_grow_with_the_square_of_the_tokens():
  def temporaries(s):
    x = jax.ShapeDtypeStruct((1, s, 1, 16), jnp.float32)
    loss = jax.grad(lambda q, k, v: flash(q, k, v, None).sum(), argnums=(0, 1, 2))
    return jax.jit(loss).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(16384) < 4 * 4 * vidgen.nn.flash.SCORES  # scores of 16,384 rows: 1 GiB
  assert temporaries(16384) < 3 * temporaries(8192)


def test_masked_keys_have_no_influence():
  q, k, v = qkv()
  mask = jnp.arange(7) < 4
  mask = jnp.stack([mask, mask])
  other = attention(q, k.at[:, 4:].set(1e4), v.at[:, 4:].set(-1e4), mask=mask)
  np.testing.assert_array_equal(attention(q, k, v, mask=mask), other)
  close(attention(q, k[:, :4], v[:, :4]), other)


def test_a_row_without_keys_is_zero_and_has_finite_gradients():
  q, k, v = qkv()
  mask = jnp.array([[False] * 7, [True] * 7])
  out, grads = jax.value_and_grad(
    lambda *x: attention(*x, mask=mask)[0].sum() + attention(*x, mask=mask)[1].sum(), (0, 1, 2)
  )(q, k, v)
  np.testing.assert_array_equal(attention(q, k, v, mask=mask)[0], 0)
  assert np.isfinite(out) and all(np.isfinite(g).all() for g in grads)
  assert np.abs(grads[2][1]).max() > 0


def test_qk_norm_makes_attention_blind_to_the_size_of_the_queries():
  x = jax.random.normal(jax.random.key(0), (1, 5, 16))
  module = MultiHeadAttention(heads=2, head_size=8, qk_norm=True)
  params = unboxed(module.init(jax.random.key(1), x, x))["params"]
  larger = {**params, "query": 10 * params["query"]}
  close(module.apply({"params": params}, x, x), module.apply({"params": larger}, x, x), 1e-3)


def test_positions_are_the_sum_of_three_rows():
  module = FactorisedPositions((3, 4, 5), 8)
  params = unboxed(module.init(jax.random.key(0), (1, 1, 1)))["params"]
  out = module.apply({"params": params}, (2, 4, 3)).reshape(2, 4, 3, 8)
  close(out[1, 3, 2], params["t"][1] + params["h"][3] + params["w"][2], 1e-6)
  close(out[0, 2, 1], params["t"][0] + params["h"][2] + params["w"][1], 1e-6)


def test_positions_refuse_a_grid_larger_than_their_tables():
  with pytest.raises(ValueError, match="5 positions along h, but the table has 4"):
    FactorisedPositions((3, 4, 5), 8).init(jax.random.key(0), (1, 5, 1))


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_unpatchify_undoes_patchify(grid, patch):
  shape = [g * p for g, p in zip(grid, patch, strict=True)]
  x = np.arange(2 * np.prod(shape) * 3, dtype=np.float32).reshape(2, *shape, 3)
  tokens = patchify(jnp.asarray(x), patch=patch)
  assert tokens.shape == (2, np.prod(grid), 3 * np.prod(patch))
  np.testing.assert_array_equal(unpatchify(tokens, grid=grid, patch=patch), x)


def test_a_token_holds_the_values_of_one_patch():
  x = np.zeros((1, 2, 4, 6, 1), np.float32)
  x[0, 1, 2:4, 4:6] = 1
  tokens = patchify(jnp.asarray(x), patch=(1, 2, 2))
  np.testing.assert_array_equal(np.flatnonzero(tokens.sum(axis=(0, 2))), [2 * 3 + 1 * 3 + 2])


def test_sides_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="does not divide"):
    grid_of((4, 5, 6), patch=(1, 2, 2))


def test_fan_in_keeps_the_variance_of_what_passes_through():
  kernel = fan_in(2)(jax.random.key(0), (16, 32, 400), jnp.float32)
  x = jax.random.normal(jax.random.key(1), (400, 16, 32))
  assert jnp.einsum("bio,iod->bd", x, kernel).std() == pytest.approx(1.0, abs=0.02)


def test_an_unknown_remat_policy_is_refused():
  with pytest.raises(ValueError, match="none, full, attention, names, dots, offload"):
    rematerialised(RMSNorm, policy="some")

"""Attention: every kernel and every way of splitting tokens over devices equals plain einsum."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.dist.flops import count_flops
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES
from vidgen.errors import ConfigError
from vidgen.nn import flash as flash_module
from vidgen.nn.attention import AttentionConfig, attention, attention_choices
from vidgen.nn.kernels import dense, flash, splash
from vidgen.nn.remat import POLICIES


def arrays(s, length, *, b=2, n=4, size=8):
  rng = np.random.default_rng(s)
  shapes = (b, s, n, size), (b, length, n, size), (b, length, n, size)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def restrictions(s, length, *, b=2):
  """Masks and segments by name; the first example has no key at all."""
  rng = np.random.default_rng(length)
  mask = jnp.asarray(rng.random((b, length)) < 0.6).at[0].set(False)
  queries = jnp.asarray(rng.integers(0, 3, (b, s)), jnp.int32)
  keys = queries if s == length else jnp.asarray(rng.integers(0, 3, (b, length)), jnp.int32)
  ids = queries, keys
  return {"all": (None, None), "mask": (mask, None), "ids": (None, ids), "both": (mask, ids)}


def value_and_gradients(attend, q, k, v):
  def both(*x):
    return attend(*x), jax.grad(lambda *y: jnp.sin(attend(*y)).sum(), (0, 1, 2))(*x)

  return jax.device_get(jax.jit(both)(q, k, v))


def equal(got, want, tolerance=1e-5):
  close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
  jax.tree.map(close, got, want)


@pytest.mark.parametrize("seen", ["all", "mask", "ids", "both"])
@pytest.mark.parametrize("tokens", [(13, 13), (16, 24)], ids=str)
@pytest.mark.parametrize("scores", [1 << 23, 240], ids=["one chunk", "chunks"])
def test_flash_equals_einsum(tokens, seen, scores, monkeypatch):
  monkeypatch.setattr(flash_module, "SCORES", scores)
  mask, ids = restrictions(*tokens)[seen]
  want = value_and_gradients(lambda *x: dense(*x, mask, ids), *arrays(*tokens))
  got = value_and_gradients(lambda *x: flash(*x, mask, ids), *arrays(*tokens))
  equal(got, want)
  if seen in ("mask", "both"):
    assert not np.any(got[0][0])  # no key: zero, not a mean


@pytest.mark.parametrize("first", [0, -1])
@pytest.mark.parametrize("seen", ["all", "both"])
def test_splash_equals_einsum(seen, first):
  """Interpreted; tokens and head size that are no multiple of what the kernel takes."""
  tokens = 200, 300
  mask, ids = restrictions(*tokens)[seen]
  ids = None if ids is None else (ids[0] + first, ids[1] + first)  # -1 is a segment as any other
  qkv = arrays(*tokens, n=2, size=64)
  want = value_and_gradients(lambda *x: dense(*x, mask, ids), *qkv)
  got = value_and_gradients(lambda *x: splash(*x, mask, ids, interpret=True), *qkv)
  equal(got, want)


@pytest.mark.parametrize("size, keys", [(64, 1024), (256, 1024), (512, 512), (1024, 256)])
def test_splash_takes_fewer_keys_at_a_time_of_wide_heads(size, keys):
  """More would not fit into VMEM; the kernel's grid is heads, blocks of queries, blocks of keys."""
  x = jax.ShapeDtypeStruct((1, 2048, 1, size), jnp.bfloat16)
  text = str(jax.make_jaxpr(lambda q, k, v: splash(q, k, v, None, None))(x, x, x))
  assert re.findall(r"grid=\(([^)]*)\)", text) == [f"1, 4, {2048 // keys}"]


MESHES = {
  "fsdp 8": MeshConfig(data=1, fsdp=8),
  "fsdp 2, context 2, tensor 2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
  "context 2, tensor 4": MeshConfig(data=1, context=2, tensor=4),
  "context 8": MeshConfig(data=1, context=8),
}


@pytest.mark.parametrize("seen", ["all", "both"])
@pytest.mark.parametrize("tokens", [16, 13])
@pytest.mark.parametrize(
  ("mesh", "sequence", "picked"),
  [
    ("fsdp 8", "auto", "dense"),
    ("fsdp 2, context 2, tensor 2", "ulysses", "dense, ulysses over context 2"),
    ("fsdp 2, context 2, tensor 2", "gather", "dense, gather over context 2"),
    ("fsdp 2, context 2, tensor 2", "ring", "flash, ring over context 2"),
    ("context 2, tensor 4", "auto", "dense, gather over context 2"),  # one head a device
    ("context 8", "auto", "dense, gather over context 8"),
    ("context 8", "ring", "flash, ring over context 8"),
  ],
)
def test_split_tokens_give_what_one_device_gives(mesh, sequence, picked, tokens, seen):
  mask, ids = restrictions(tokens, tokens, b=8)[seen]
  qkv = arrays(tokens, tokens, b=8)
  want = value_and_gradients(lambda *x: dense(*x, mask, ids), *qkv)
  config = AttentionConfig(sequence=sequence)
  with on_mesh(make_mesh(MESHES[mesh]), rules=DEFAULT_RULES, attention=config) as choices:
    got = value_and_gradients(
      lambda *x: attention(*x, mask=mask, ids=ids, key_axis="sequence"), *qkv
    )
  equal(got, want)
  assert choices.picked == {f"{tokens} x {tokens} tokens, 4 heads of 8": picked}


def test_cross_attention_on_a_mesh_needs_no_exchange():
  mask, _ = restrictions(13, 7)["mask"]
  qkv = arrays(13, 7)
  want = value_and_gradients(lambda *x: dense(*x, mask, None), *qkv)
  mesh = make_mesh(MESHES["fsdp 2, context 2, tensor 2"])
  with on_mesh(mesh, rules=DEFAULT_RULES) as choices:
    equal(value_and_gradients(lambda *x: attention(*x, mask=mask), *qkv), want)
  assert str(choices) == "dense for 13 x 7 tokens, 4 heads of 8"


@pytest.mark.parametrize("sequence", ["ulysses", "gather", "ring"])
def test_keys_may_be_more_than_queries_where_both_are_split(sequence):
  mask, ids = restrictions(16, 24)["both"]
  qkv = arrays(16, 24)
  want = value_and_gradients(lambda *x: dense(*x, mask, ids), *qkv)
  config = AttentionConfig(sequence=sequence)
  mesh = make_mesh(MESHES["fsdp 2, context 2, tensor 2"])
  with on_mesh(mesh, rules=DEFAULT_RULES, attention=config):
    got = value_and_gradients(
      lambda *x: attention(*x, mask=mask, ids=ids, key_axis="sequence"), *qkv
    )
  equal(got, want)


def test_work_that_devices_repeat_is_told():
  q, k, v = arrays(16, 16, n=3)
  rules = [rule for rule in DEFAULT_RULES if rule[0] != "sequence"]
  with on_mesh(make_mesh(MESHES["fsdp 2, context 2, tensor 2"]), rules=rules) as choices:
    jax.jit(lambda *x: attention(*x, key_axis="sequence"))(q, k, v)
  assert str(choices) == (
    "dense, the same on all of context 2, the same on all of tensor 2 "
    "for 16 x 16 tokens, 3 heads of 8"
  )


def with_bias(q, k, v, bias, *, mask, scale):
  """Attention with a bias, written out."""
  scores = jnp.einsum("bsnk,blnk->bnsl", q, k) * scale + bias
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
  weights = jnp.where(mask[:, None, None], weights, 0)
  return jnp.einsum("bnsl,blnk->bsnk", weights, v)


@pytest.mark.parametrize("heads", [1, 4], ids=["bias for all heads", "bias a head"])
@pytest.mark.parametrize(
  ("mesh", "sequence", "picked"),
  [
    ("one device", "auto", "dense, with a bias"),
    ("fsdp 8", "auto", "dense, with a bias"),
    ("fsdp 2, context 2, tensor 2", "auto", "dense, with a bias, gather over context 2"),
    ("fsdp 2, context 2, tensor 2", "ring", "dense, with a bias, gather over context 2"),
    ("context 2, tensor 4", "ulysses", "dense, with a bias, gather over context 2"),
  ],
)
def test_a_bias_and_a_scale_enter_the_scores_whatever_is_asked_for(mesh, sequence, picked, heads):
  """13 tokens do not divide; a kernel without a bias is asked for; the bias has a gradient."""
  q, k, v = arrays(13, 13, b=8)
  mask, _ = restrictions(13, 13, b=8)["mask"]
  bias = jnp.asarray(np.random.default_rng(0).standard_normal((heads, 13, 13)), jnp.float32)

  def both(attend):
    def value(*x):
      return jnp.sin(attend(*x)).sum(), attend(*x)

    return jax.device_get(jax.jit(jax.grad(value, (0, 1, 2, 3), has_aux=True))(q, k, v, bias))

  want = both(functools.partial(with_bias, mask=mask, scale=0.7))
  config = AttentionConfig(kernel="flash", sequence=sequence)
  devices = jax.devices()[: 8 if mesh in MESHES else 1]
  laid = make_mesh(MESHES.get(mesh, MeshConfig()), devices=devices)
  with on_mesh(laid, rules=DEFAULT_RULES, attention=config) as choices:
    got = both(
      lambda q, k, v, bias: attention(q, k, v, mask=mask, key_axis="sequence", bias=bias, scale=0.7)
    )
  equal(got, want)
  assert choices.picked == {"13 x 13 tokens, 4 heads of 8": picked}


@pytest.mark.parametrize("kernel", ["dense", "flash"])
def test_a_scale_alone_works_with_every_kernel(kernel):
  q, k, v = arrays(16, 24)
  want = with_bias(q, k, v, 0, mask=jnp.ones((2, 24), bool), scale=0.7)
  with attention_choices(AttentionConfig(kernel=kernel), platform="cpu"):
    equal(jax.jit(lambda *x: attention(*x, scale=0.7))(q, k, v), want)


def test_a_bias_of_other_heads_is_refused():
  q, k, v = arrays(13, 13)
  with pytest.raises(ValueError, match="a bias for 2 heads, but there are 4"):
    attention(q, k, v, bias=jnp.zeros((2, 13, 13)))


def test_values_of_another_size_than_keys_go_with_a_bias_only():
  q, k, v = arrays(13, 13)
  wide = jnp.concatenate([v, v[..., :3]], axis=-1)
  zero = jnp.zeros((1, 13, 13))
  got = attention(q, k, wide, bias=zero)
  equal(got[..., :8], attention(q, k, v))
  equal(got[..., 8:], got[..., :3])
  with pytest.raises(ValueError, match="values of 11 for keys of 8 go with a bias only"):
    attention(q, k, wide)


def test_ulysses_needs_heads_that_divide():
  q, k, v = arrays(16, 16)
  config = AttentionConfig(sequence="ulysses")
  with on_mesh(make_mesh(MESHES["context 8"]), rules=DEFAULT_RULES, attention=config):
    with pytest.raises(ConfigError, match="ulysses splits heads, and 4 of a device do not"):
      jax.jit(lambda *x: attention(*x, key_axis="sequence"))(q, k, v)


def trace(config, *, platform, tokens, dtype=jnp.bfloat16):
  x = jax.ShapeDtypeStruct((1, tokens, 2, 128), dtype)
  with attention_choices(config, platform=platform) as choices:
    jax.make_jaxpr(lambda *x: attention(*x))(x, x, x)  # a new function: traces are kept by function
  return list(choices.picked.values())[0]


def test_auto_picks_by_platform_and_size():
  auto = AttentionConfig()
  assert trace(auto, platform="cpu", tokens=64) == "dense"
  assert trace(auto, platform="cpu", tokens=1024) == "flash"
  assert trace(auto, platform="tpu", tokens=1024) == "splash"
  assert trace(auto, platform="tpu", tokens=64) == "dense"
  # without libcudnn, and for float32 in any case, the chunked form runs everywhere
  assert trace(auto, platform="cuda", tokens=1024, dtype=jnp.float32) == "flash"
  assert trace(AttentionConfig(kernel="flash"), platform="tpu", tokens=64) == "flash"


@pytest.mark.parametrize(("policy", "runs"), [("full", 2), ("attention", 1), ("names", 1)])
@pytest.mark.parametrize("mesh", ["one device", "fsdp 2, context 2, tensor 2"])
def test_remat_by_name_does_not_run_the_forward_kernel_again(policy, runs, mesh):
  """Forward two products of the size of the scores, backward seven in splash's two kernels."""

  def layer(q, w):
    x = q @ w
    return attention(x, x, x, key_axis="sequence") @ w

  def loss(q, w):
    return jnp.sin(jax.checkpoint(layer, policy=POLICIES[policy])(q, w)).sum()

  q = jax.ShapeDtypeStruct((2, 256, 4, 128), jnp.float32)
  w = jax.ShapeDtypeStruct((128, 128), jnp.float32)
  config = MESHES.get(mesh, MeshConfig())
  devices = jax.devices()[: 8 if mesh in MESHES else 1]
  splash = AttentionConfig(kernel="splash")
  with on_mesh(make_mesh(config, devices=devices), rules=DEFAULT_RULES, attention=splash):
    work = count_flops(jax.grad(loss, (0, 1)), q, w)
  product = 2 * 2 * 256 * 256 * 4 * 128
  assert work.kernels == (2 * runs + 7) * product

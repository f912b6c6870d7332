"""Movie Gen Video's transformer: parity with PyTorch, its size, its symmetries, its variants."""

import dataclasses
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check

from vidgen.config import load_config, plain
from vidgen.dist.mesh import on_mesh
from vidgen.models.movie_gen_dit import MovieGenDiT, forward_flops
from vidgen.nn.partition import axes_of, partition_spec, unboxed
from vidgen.nn.patches import grid_of
from vidgen.systems import make_stage

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = np.load(ROOT / "tests" / "fixtures" / "movie_gen.npz")
TEXT = {"long": 10, "short": 14}
SMALL = MovieGenDiT(
  channels=4,
  layers=2,
  width=24,
  heads=3,
  mlp_width=40,
  text_widths=TEXT,
  max_grid=(3, 4, 4),
  dtype="float32",
  remat="none",
)


def fixture_tree(prefix):
  names = [name for name in FIXTURE.files if name.startswith(prefix)]
  flat = {tuple(name.removeprefix(prefix).split("/")): FIXTURE[name] for name in names}
  return jax.tree.map(jnp.asarray, flax.traverse_util.unflatten_dict(flat))


PARAMS = fixture_tree("params/")  # random everywhere: what is zero at the start is not here


def inputs(latents="network/latents"):
  text = {name: jnp.asarray(FIXTURE[f"network/text_{name}"]) for name in TEXT}
  masks = {name: jnp.asarray(FIXTURE[f"network/mask_{name}"]) for name in TEXT}
  return jnp.asarray(FIXTURE[latents]), jnp.asarray(FIXTURE["network/time"]), text, masks


def apply(network, params, *arguments):
  return jax.jit(network.apply)({"params": params}, *arguments)


def close(a, b, tolerance=1e-4):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def fresh(network):
  return unboxed(jax.jit(network.init)(jax.random.key(0), *inputs()))["params"]


def scattered(network, *arguments):
  """Parameters none of which is zero; quicker than compiling `init`."""
  rng = np.random.default_rng(0)
  shapes = unboxed(jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"])
  return jax.tree.map(lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), shapes)


def abstract(network):
  return jax.eval_shape(network.init, jax.random.key(0), *inputs())["params"]


def gradients(network):
  """Of a weighted sum of the output, by the parameters and the latents; and the output."""
  latents, *rest = inputs()

  def value(params, latents):
    out = network.apply({"params": params}, latents, *rest)
    return jnp.sum(out * FIXTURE["network/cotangent"]), out

  return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(PARAMS, latents)


def test_names_and_shapes_are_those_of_the_pytorch_network():
  shapes = jax.tree.map(lambda p: p.shape, unboxed(abstract(SMALL)))
  assert shapes == jax.tree.map(lambda p: p.shape, PARAMS)


def output_and_gradients():
  (by_params, by_latents), out = gradients(SMALL)
  expected = flax.traverse_util.flatten_dict(fixture_tree("grads/"), sep="/")
  actual = {**flax.traverse_util.flatten_dict(by_params, sep="/"), "latents": by_latents}
  assert len(expected) == 5
  pairs = {f"gradient by {name}": (actual[name], value) for name, value in expected.items()}
  return {"out": (out, FIXTURE["network/out"]), **pairs}


CASES = [
  Case(
    "models.movie_gen_dit",
    "torch==2.13.0, written from the report",
    "2 layers of 24, two text streams; output and gradients",
    1e-4,
    output_and_gradients,
  )
]


def test_output_and_gradients_equal_pytorchs():
  check(CASES[0])


@pytest.mark.parametrize("remat", ["full", "attention", "dots", "names", "offload"])
def test_remat_changes_nothing(remat):
  jax.tree.map(
    lambda a, b: close(a, b, 1e-5), gradients(SMALL), gradients(SMALL.clone(remat=remat))
  )


def test_a_scan_equals_its_unrolled_form():
  unrolled = SMALL.clone(scan_unroll=2)
  jax.tree.map(lambda a, b: close(a, b, 1e-5), gradients(SMALL), gradients(unrolled))


def test_bfloat16_is_close_and_returns_float32():
  out = apply(SMALL.clone(dtype="bfloat16"), PARAMS, *inputs())
  assert out.dtype == jnp.float32
  error = out - FIXTURE["network/out"]
  # Two layers of random weights amplify the 2^-8 of a bfloat16; percents, not tens of them.
  assert jnp.sqrt(jnp.mean(error**2) / np.mean(FIXTURE["network/out"] ** 2)) < 0.05


def count(network, text):
  latents = jax.ShapeDtypeStruct((1, *network.patch, network.channels), jnp.float32)
  text_in = {n: jax.ShapeDtypeStruct((1, 1, w), jnp.float32) for n, w in text.items()}
  masks = {n: jax.ShapeDtypeStruct((1, 1), jnp.bool_) for n in text}
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  params = jax.eval_shape(network.init, jax.random.key(0), latents, time, text_in, masks)
  return sum(p.size for p in jax.tree.leaves(params))


def full_size(name, file="t2v_256"):
  config = load_config(f"{ROOT}/configs/movie_gen/{file}.py:{name}")
  return make_stage(config.stage.name, plain(config.stage.fields))


def closed_form(layers, d, mlp, rows=(32, 96, 96)):
  """The parameters of specification 3.4, term by term; `rows` of the position tables."""
  blocks = layers * (8 * d * d + 3 * d * mlp)
  norms = (2 * layers + 1) * d
  modulation = 6 * d * d + 6 * d + layers * 6 * d
  time = 256 * d + d + d * d + d
  patches = 64 * d + d + d * 64 + 2 * d
  positions = sum(rows) * d
  text = (4096 + 1280 + 1472) * d + 3 * (d + 2 * d)
  return blocks + norms + modulation + time + patches + positions + text


@pytest.mark.parametrize("file", ["t2v_768", "sft", "image_1024"])
def test_mgv_1_the_30b_model_counts_29_303_568_384(file):
  network = full_size("30b", file).network
  assert count(network, network.text_widths) == closed_form(48, 6144, 16384) == 29_303_568_384
  assert abs(29_303_568_384 / 30e9 - 1) < 0.03


def test_mgv_1_the_smaller_models_count_as_they_are_called():
  for name, shape, size in (("5b", (32, 3072, 8192), 4.92e9), ("1b", (24, 1536, 4096), 0.93e9)):
    network = full_size(name).network
    assert count(network, network.text_widths) == closed_form(*shape, rows=(32, 32, 32))
    assert closed_form(*shape) == pytest.approx(size, rel=0.01)


def test_mgv_1_modulation_per_layer_would_make_40b_of_it():
  network = full_size("30b").network.clone(per_layer_modulation=True)
  assert count(network, network.text_widths) / 1e9 == pytest.approx(39.95, abs=0.005)


@pytest.mark.parametrize(
  "frames, height, width, tokens",
  [
    (256, 768, 768, 73_728),
    (256, 576, 1024, 73_728),
    (256, 576, 1008, 72_576),
    (192, 768, 768, 55_296),
    (128, 768, 768, 36_864),
    (64, 768, 768, 18_432),
    (256, 256, 256, 8_192),
    (128, 192, 352, 4_224),
    (1, 256, 256, 256),
    (1, 768, 768, 2_304),
  ],
)
def test_mgv_2_tokens_of_a_clip(frames, height, width, tokens):
  stage = full_size("30b", "t2v_768")
  bucket = dataclasses.replace(stage.config.buckets[0], frames=frames, height=height, width=width)
  grid = grid_of(stage.config.latent_shape(bucket)[:3], patch=stage.config.patch)
  assert np.prod(grid) == tokens
  assert all(side <= most for side, most in zip(grid, stage.config.max_grid, strict=True))


@pytest.mark.parametrize("file", ["t2v_256", "t2v_768"])
@pytest.mark.parametrize("variant", ["1b", "tiny"])
def test_mgv_2_every_bucket_finds_its_positions(file, variant):
  stage = full_size(variant, file)
  params = jax.eval_shape(stage.init, jax.random.key(0))
  for bucket in stage.buckets:
    batch = {name: array.struct() for name, array in stage.batch_spec(1, bucket).items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    loss, _ = jax.eval_shape(stage.loss, params, batch, keys)
    assert loss.shape == ()


def test_mgv_7_a_fresh_model_predicts_zero():
  np.testing.assert_array_equal(apply(SMALL, fresh(SMALL), *inputs()), 0)


def test_only_cross_attention_moves_the_residual_stream_of_a_fresh_model():
  """Blocks are the identity at the start, but for positions and cross-attention."""
  params = fresh(SMALL)
  params["blocks"]["cross_attention"]["out"] *= 0
  params["patch_out"]["kernel"] = PARAMS["patch_out"]["kernel"]
  changed = {**params, "blocks": jax.tree.map(lambda p: p, params["blocks"])}
  for name in ("self_attention", "mlp"):
    changed["blocks"][name] = PARAMS["blocks"][name]
  out = apply(SMALL, params, *inputs())
  assert jnp.abs(out).max() > 0.1
  np.testing.assert_array_equal(out, apply(SMALL, changed, *inputs()))


def test_mgv_8_the_order_of_text_tokens_does_not_matter():
  latents, time, text, masks = inputs()
  order = np.random.default_rng(0).permutation(5)
  text = {**text, "long": text["long"][:, order]}
  masks = {**masks, "long": masks["long"][:, order]}
  close(apply(SMALL, PARAMS, latents, time, text, masks), FIXTURE["network/out"], 1e-4)


@pytest.mark.parametrize("axis, name, patch", [(1, "t", 1), (2, "h", 2), (3, "w", 2)])
def test_mgv_8_video_tokens_have_no_order_but_their_positions(axis, name, patch):
  latents, *rest = inputs()
  count = latents.shape[axis] // patch
  order = np.roll(np.arange(count), 1)
  pixels = (order[:, None] * patch + np.arange(patch)).ravel()
  moved = jnp.take(latents, pixels, axis=axis)
  table = PARAMS["positions"][name]
  table = table.at[:count].set(table[order])
  params = {**PARAMS, "positions": {**PARAMS["positions"], name: table}}
  expected = np.take(FIXTURE["network/out"], pixels, axis=axis)
  close(apply(SMALL, params, moved, *rest), expected)
  assert np.abs(apply(SMALL, PARAMS, moved, *rest) - expected).max() > 0.01


def test_mgv_10_a_clip_of_one_frame_is_an_image():
  """The video model on one frame is the image model that has no time: one row of positions."""
  latents, *rest = inputs()
  image = MovieGenDiT(**{**vars_of(SMALL), "max_grid": (1, 4, 4)})
  positions = {**PARAMS["positions"], "t": PARAMS["positions"]["t"][:1]}
  out = apply(SMALL, PARAMS, latents[:, :1], *rest)
  np.testing.assert_array_equal(
    out, apply(image, {**PARAMS, "positions": positions}, latents[:, :1], *rest)
  )
  assert np.abs(out - FIXTURE["network/out"][:, :1]).max() > 0.01  # the other frames did matter


def vars_of(network):
  fields = [f.name for f in dataclasses.fields(network) if f.name not in ("parent", "name")]
  return {name: getattr(network, name) for name in fields}


def test_text_that_no_mask_admits_has_no_influence():
  latents, time, text, masks = inputs()
  none = {name: jnp.zeros_like(mask) for name, mask in masks.items()}
  other = {name: x + 100 for name, x in text.items()}
  out = apply(SMALL, PARAMS, latents, time, text, none)
  np.testing.assert_array_equal(out, apply(SMALL, PARAMS, latents, time, other, none))


@pytest.mark.parametrize(
  "option", [{"qk_norm": True}, {"pooled_text": True}, {"per_layer_modulation": True}], ids=str
)
def test_an_option_changes_the_model_and_all_of_it_learns(option):
  """Every parameter gets a gradient once nothing is zero any more."""
  network = SMALL.clone(**option)
  params = scattered(network, *inputs())
  latents, *rest = inputs()

  def value(params):
    return jnp.sum(network.apply({"params": params}, latents, *rest) * FIXTURE["network/cotangent"])

  grads = jax.jit(jax.grad(value))(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-6, jax.tree_util.keystr(path)
  assert jax.tree.structure(grads) != jax.tree.structure(PARAMS)


def test_wrong_text_streams_are_refused():
  latents, time, text, masks = inputs()
  with pytest.raises(ValueError, match=r"text streams \['long'\]"):
    SMALL.apply({"params": PARAMS}, latents, time, {"long": text["long"]}, masks)


def test_flops_are_those_of_xla():
  """Within 2% of what XLA counts, scan unrolled; the rest of its count is elementwise."""
  text = {"a": 64, "b": 96}
  network = MovieGenDiT(
    channels=16,
    layers=2,
    width=512,
    heads=4,
    mlp_width=1024,
    text_widths=text,
    max_grid=(4, 8, 8),
    dtype="float32",
    remat="none",
    scan_unroll=2,
  )
  arguments = (
    jax.ShapeDtypeStruct((1, 4, 16, 16, 16), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.float32),
    {n: jax.ShapeDtypeStruct((1, 32, w), jnp.float32) for n, w in text.items()},
    {n: jax.ShapeDtypeStruct((1, 32), jnp.bool_) for n in text},
  )
  params = unboxed(jax.eval_shape(network.init, jax.random.key(0), *arguments))
  counted = jax.jit(network.apply).lower(params, *arguments).compile().cost_analysis()["flops"]
  formula = forward_flops(network, grid=(4, 8, 8), text_lengths={"a": 32, "b": 32})
  assert counted == pytest.approx(formula, rel=0.02)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_any_mesh_gives_the_same_output_by_the_shipped_rules(shape):
  """Data, fsdp and tensor parallelism over eight devices, parameters and activations split."""
  sizes = {"channels": 4, "layers": 2, "width": 32, "heads": 4, "mlp_width": 64}
  network = MovieGenDiT(
    **sizes, text_widths=TEXT, max_grid=(3, 4, 4), dtype="float32", remat="full"
  )
  tile = lambda x: jnp.tile(x, (4, *(1,) * (x.ndim - 1)))  # noqa: E731  (a batch of 8 from 2)
  arguments = jax.tree.map(tile, inputs())
  params = scattered(network, *arguments)
  expected = apply(network, params, *arguments)

  config = load_config(f"{ROOT}/configs/movie_gen/t2v_256.py:30b")
  rules = [(name, tuple(a) if isinstance(a, list) else a) for name, a in plain(config.rules)]
  mesh = jax.make_mesh(
    (*shape[:2], 1, shape[2]),
    ("data", "fsdp", "context", "tensor"),
    axis_types=(jax.sharding.AxisType.Auto,) * 4,
  )
  boxed = jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"]
  shardings = jax.tree.map(
    lambda p, axes: jax.sharding.NamedSharding(
      mesh, partition_spec(p.shape, axes, mesh=mesh.shape, rules=rules)
    ),
    unboxed(boxed),
    axes_of(boxed),
  )
  query = shardings["blocks"]["self_attention"]["query"].spec
  assert [axis for axis in query if axis] == [
    axis for axis, size in (("fsdp", shape[1]), ("tensor", shape[2])) if size > 1
  ]
  with on_mesh(mesh, rules=rules):
    lowered = jax.jit(network.apply).lower(
      {"params": jax.device_put(params, shardings)}, *arguments
    )
    text = lowered.as_text()
    out = lowered.compile()({"params": jax.device_put(params, shardings)}, *arguments)
  assert "sharding_constraint" in text or "@Sharding" in text
  close(out, expected, 1e-5)

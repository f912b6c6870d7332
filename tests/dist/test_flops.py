"""FLOPs of a jaxpr: XLA's own where XLA can count, and the true ones where it cannot."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec as P

from vidgen.config import load_config
from vidgen.dist.flops import Work, count_flops
from vidgen.systems import make_stage

ROOT = pathlib.Path(__file__).resolve().parents[2]


def floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def xla_flops(f, *args):
  return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_a_matmul_and_its_gradients_are_those_of_xla():
  def f(x, y):
    return jnp.sum(jnp.einsum("bsd,df->bsf", x, y) ** 2)

  args = floats(2, 48, 512), floats(512, 256)
  forward, both = count_flops(f, *args), count_flops(jax.grad(f, (0, 1)), *args)
  assert forward == Work(products=2.0 * 2 * 48 * 512 * 256)
  assert both == 3 * forward
  assert both.total == pytest.approx(xla_flops(jax.grad(f, (0, 1)), *args), rel=0.02)


CONVOLUTIONS = {
  "same": {"padding": "SAME", "window_strides": (1, 1)},
  "strided": {"padding": [(1, 1), (0, 1)], "window_strides": (2, 3)},
  "transposed": {"padding": [(2, 2), (2, 1)], "window_strides": (1, 1), "lhs_dilation": (2, 3)},
  "dilated": {"padding": "SAME", "window_strides": (2, 1), "rhs_dilation": (2, 3)},
  "grouped": {"padding": "SAME", "window_strides": (1, 1), "feature_group_count": 4},
  "batch groups": {"padding": "VALID", "window_strides": (1, 1), "batch_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_those_of_xla_and_each_gradient_costs_the_same(name):
  options = CONVOLUTIONS[name]
  layout = ("NHWC", "HWIO", "NHWC")
  f = functools.partial(lax.conv_general_dilated, dimension_numbers=layout, **options)
  groups = options.get("feature_group_count", 1)
  args = floats(4, 11, 13, 16), floats(3, 4, 16 // groups, 24)
  forward = count_flops(f, *args)
  # Before XLA for CPU rewrites it.
  assert forward.products == jax.jit(f).lower(*args).cost_analysis()["flops"]
  both = jax.grad(lambda x, y: jnp.sum(f(x, y) ** 2), (0, 1))
  assert count_flops(both, *args) == 3 * forward


def test_without_padding_a_convolution_is_the_plain_formula():
  f = functools.partial(lax.conv_general_dilated, window_strides=(1, 1, 1), padding="VALID")
  work = count_flops(f, floats(2, 8, 6, 10, 10), floats(12, 8, 3, 3, 3))
  assert work.products == 2 * (2 * 12 * 4 * 8 * 8) * (8 * 27)


def attend(q, k, v):
  scores = jnp.einsum("bsnk,blnk->bnsl", q, k)
  return jnp.einsum("bnsl,blnk->bsnk", jax.nn.softmax(scores), v)


def test_attention_is_that_of_xla():
  args = floats(2, 96, 2, 512), floats(2, 64, 2, 512), floats(2, 64, 2, 512)
  work = count_flops(attend, *args)
  assert work.total == 4 * 2 * 96 * 64 * 2 * 512
  assert work.total == pytest.approx(xla_flops(attend, *args), rel=0.02)


def test_a_scan_counts_as_often_as_it_runs_and_recomputation_again():
  def layer(x, y):
    return jnp.sin(x @ y), None

  def f(layer, x, ys):
    return lax.scan(layer, x, ys)[0].sum()

  args, once = (floats(8, 16), floats(7, 16, 16)), 2 * 8 * 16 * 16
  assert count_flops(functools.partial(f, layer), *args).total == 7 * once
  plain = count_flops(jax.grad(functools.partial(f, layer), (0, 1)), *args)
  again = count_flops(jax.grad(functools.partial(f, jax.checkpoint(layer)), (0, 1)), *args)
  assert plain.total == 3 * 7 * once
  assert again.total == 4 * 7 * once
  assert count_flops(lambda x: lax.fori_loop(0, 5, lambda _, c: c @ c, x), floats(8, 8)) == Work(
    products=5.0 * 2 * 8**3
  )


def test_jit_and_custom_gradients_are_seen_through():
  @jax.custom_vjp
  def f(x):
    return jax.jit(lambda x: x @ x)(x)

  f.defvjp(lambda x: (f(x), x), lambda x, g: (g @ x @ x,))
  assert count_flops(f, floats(8, 8)).total == 2 * 8**3
  both = jax.value_and_grad(lambda x: f(x).sum())
  assert count_flops(both, floats(8, 8)).total == 3 * 2 * 8**3


def test_what_no_output_needs_does_not_count():
  """As XLA leaves it out: the gradient of a sum of products does not need the products."""

  def f(x, y):
    return jnp.sum(x @ y)

  once = 2 * 8**3
  assert count_flops(jax.grad(f), floats(8, 8), floats(8, 8)).total == once
  assert count_flops(jax.value_and_grad(f), floats(8, 8), floats(8, 8)).total == 2 * once


def test_the_heaviest_branch_counts():
  def f(i, x):
    return lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

  assert count_flops(f, jax.ShapeDtypeStruct((), jnp.int32), floats(8, 8)).total == 2 * 2 * 8**3


def test_a_loop_of_unknown_length_is_refused_if_it_multiplies():
  def f(step, x):
    with jax.named_scope("the_sampler"):
      return lax.while_loop(lambda x: x.sum() < 5, step, x)

  assert count_flops(functools.partial(f, lambda x: x + 1), floats(4, 4)) == Work()
  with pytest.raises(ValueError, match="while_loop.*the_sampler"):
    count_flops(functools.partial(f, lambda x: x @ x), floats(4, 4))


@pytest.mark.parametrize(
  ("axes", "inputs", "out"),
  [
    ({"a", "b"}, (P("a", None), P(None, "b")), P("a", "b")),
    ({"a"}, (P("a", None), P()), P("a", None)),  # the compiler may still split over b
    ({"b"}, (P(None, "b"), P("b", None)), P()),
  ],
)
def test_a_shard_map_counts_for_all_devices_of_its_manual_axes(axes, inputs, out):
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def local(x, y):
    product = x @ y
    return product if out else lax.psum(product, "b")

  f = jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=out, axis_names=axes)
  assert count_flops(f, floats(16, 32), floats(32, 64)).total == 2 * 16 * 32 * 64


@pytest.mark.parametrize("fused", [True, False])
def test_splash_attention_counts_two_products_forward_and_five_or_seven_backward(fused):
  """Separate kernels for dq and for dk, dv both compute the scores and their gradient."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

  b, n, s, words, k = 2, 4, 1024, 2048, 128
  blocks = kernel.BlockSizes(
    block_q=512,
    block_kv=1024,
    block_kv_compute=512,
    block_q_dkv=512,
    block_kv_dkv=1024,
    block_kv_dkv_compute=512,
    block_q_dq=None if fused else 512,
    block_kv_dq=None if fused else 512,
    use_fused_bwd_kernel=fused,
  )
  heads = mask.MultiHeadMask([mask.FullMask((s, words))] * n)
  f = jax.vmap(kernel.make_splash_mha(heads, head_shards=1, q_seq_shards=1, block_sizes=blocks))
  args = floats(b, n, s, k), floats(b, n, words, k), floats(b, n, words, k)
  product = 2 * b * n * s * words * k
  assert count_flops(f, *args) == Work(kernels=2.0 * product)
  both = count_flops(jax.grad(lambda *x: jnp.sum(f(*x)), (0, 1, 2)), *args)
  assert both.kernels == (2 + (5 if fused else 7)) * product
  assert both.products == 2 * b * n * s * k  # output times its gradient, summed over k


@pytest.mark.parametrize("layout", [0, 1])
def test_cudnn_attention_counts_two_products_forward_and_five_backward(layout):
  """By a stand-in with the name, operands and layout of jax's primitive: b s n k, or b n s k."""
  b, n, s, words, k = 2, 3, 64, 96, 32
  order = (lambda x: (b, x, n, k)) if layout == 0 else (lambda x: (b, n, x, k))
  args = floats(*order(s)), floats(*order(words)), floats(*order(words))
  for name, products in (("fwd", 2), ("bwd", 5), ("fp8_fwd", 2)):
    primitive = Primitive(f"dot_product_attention_{name}_wrapper")
    primitive.def_abstract_eval(lambda *operands, layout: operands[0])
    work = count_flops(functools.partial(primitive.bind, layout=layout), *args)
    assert work == Work(kernels=2.0 * products * b * n * s * words * k), name


def stage_of(variant, **changes):
  stage = load_config(f"{ROOT}/configs/movie_gen/t2v_256.py:{variant}")["stage"].to_dict()
  return make_stage(stage["name"], {**stage["fields"], **changes})


SHRUNK = {  # the full-size shape with few layers, its three text streams and its latents
  "layers": 2,
  "heads": 8,
  "width": 1024,
  "mlp_width": 2816,
  "buckets": [{"name": "video", "frames": 32, "height": 128, "width": 128}],
  "dtype": "float32",
  "remat": "none",
  "scan_unroll": 2,
}


def arguments(model, batch):
  params = jax.eval_shape(model.init, jax.random.key(0))
  rng = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  return params, {n: array.struct() for n, array in model.batch_spec(batch).items()}, rng


def test_the_flops_of_the_tiny_stage_are_those_counted():
  model = stage_of("tiny", scan_unroll=1)
  args, formula = arguments(model, 2), model.flops(model.batch_spec(2))
  assert count_flops(model.loss, *args).total == formula
  step = count_flops(jax.grad(lambda *x: model.loss(*x)[0]), *args)
  assert step.total == pytest.approx(3 * formula, rel=0.02)


def test_the_flops_of_the_full_size_shape_are_those_counted_and_those_of_xla():
  """Backward twice the forward, less the gradients of what is no parameter: latents, text, time.

  XLA counts before it optimises: to compile this for CPU takes half a minute, and gives 0.02% more.
  """
  model, b, d = stage_of("1b", **SHRUNK), 2, SHRUNK["width"]
  args, formula = arguments(model, b), model.flops(model.batch_spec(b))
  loss = lambda *x: model.loss(*x)[0]  # noqa: E731  (as short as its name)
  assert count_flops(loss, *args).total == formula
  assert jax.jit(loss).lower(*args).cost_analysis()["flops"] == pytest.approx(formula, rel=0.02)
  text = 300 * 4096 + 100 * 1472 + 256 * 1280
  data = 2 * b * d * (256 * 64 + text + 256)
  assert count_flops(jax.grad(loss), *args).total == 3 * formula - data


def test_the_full_size_step_repeats_the_forward_pass_but_for_its_attention():
  """Scanned 48 times, recomputed once; `flash` is itself recomputed in its gradient.

  Remat runs the forward pass again, and so does the gradient of `flash` run its scores: 4 passes
  and a half product of the two of attention.
  """
  model = stage_of("30b", remat="full")
  formula = model.flops(model.batch_spec(1))
  step = count_flops(jax.grad(lambda *x: model.loss(*x)[0]), *arguments(model, 1))
  assert 4 * formula < step.total < 4.5 * formula

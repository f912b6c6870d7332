"""Collectives of compiled programs: real ones on eight devices, and text as XLA prints it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vidgen.dist.collectives import (
  Collective,
  axes_of,
  axes_of_group,
  collectives_of,
  costliest,
  summary,
)

MESH = {"fsdp": 4, "context": 2, "tensor": 2}


def mesh_of(**sizes):
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)


def test_an_fsdp_scan_gathers_each_layer_and_reduces_each_gradient():
  """Seven layers of 64 x 64 over 4 devices: 4,096 bytes of each, sent thrice, and its gradient."""
  mesh = mesh_of(fsdp=4, tensor=2)

  def loss(weights, x):
    def layer(x, w):
      return jnp.tanh(x @ lax.with_sharding_constraint(w, NamedSharding(mesh, P()))), None

    return jnp.mean(lax.scan(layer, x, weights)[0] ** 2)

  split = NamedSharding(mesh, P(None, "fsdp", None))
  weights = jax.ShapeDtypeStruct((7, 64, 64), jnp.float32, sharding=split)
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
  program = jax.jit(jax.grad(loss), out_shardings=split).lower(weights, x).compile()
  found = [c for c in collectives_of(program.as_text()) if c.operand_bytes > 4]
  assert {axes_of(c, dict(mesh.shape)) for c in found} == {("fsdp",)}
  assert all("while/body" in c.op_name and c.times == 7 for c in found)
  gathers = [c for c in found if c.kind == "all-gather"]
  assert gathers
  for c in gathers:  # one, or one more for the backward pass
    assert (c.operand_bytes, c.result_bytes, c.bytes) == (4096, 16384, 3 * 4096)
  gradient = [c for c in found if c.kind == "all-reduce"]
  assert [(c.operand_bytes, c.result_bytes, c.bytes) for c in gradient] == [(16384, 16384, 24576)]
  assert summary(gradient) == {"all-reduce": {"count": 7, "bytes": 7 * 24576}}


def test_an_exchange_and_a_shift_over_eight_devices():
  mesh = mesh_of(context=8)

  def f(x):
    x = lax.all_to_all(x, "context", 0, 1, tiled=True)
    return lax.ppermute(x, "context", [(i, (i + 1) % 8) for i in range(8)])

  x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
  f = jax.shard_map(f, mesh=mesh, in_specs=P("context"), out_specs=P("context"))
  exchange, shift = collectives_of(jax.jit(f).lower(x).compile().as_text())
  assert (exchange.kind, exchange.group_size, exchange.bytes) == ("all-to-all", 8, 1024 * 7 // 8)
  assert (shift.kind, shift.group_size, shift.bytes) == ("collective-permute", 2, 1024)
  assert axes_of(shift, {"context": 8}) == axes_of(exchange, {"context": 8}) == ("context",)


# As libtpu 0.0.42 prints a step for v5p:2x2x4, cut down.
TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=16, frontend_attributes={fingerprint="b3"}

%add.clone (x.3: bf16[], y.1: bf16[]) -> bf16[] {
  %x.3 = bf16[]{:T(256)} parameter(0)
  %y.1 = bf16[]{:T(256)} parameter(1)
  ROOT %add.45 = bf16[]{:T(256)} add(%x.3, %y.1)
}

%all-reduce-scatter.clone.1 (input.4: bf16[4,512,1024]) -> bf16[4,256,1024] {
  %input.4 = bf16[4,512,1024]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.14 = bf16[4,512,1024]{2,1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=10, \
replica_groups={{0,2},{1,3},{4,6},{5,7},{8,10},{9,11},{12,14},{13,15}}, to_apply=%add.clone
  %constant.736 = u32[] constant(0)
  ROOT %dynamic-slice.249 = bf16[4,256,1024]{2,1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.14, \
%constant.736), dynamic_slice_sizes={4,256,1024}
}

%region_0 (wide.param.0: (s32[], bf16[4,256,1024], /*index=2*/bf16[1,256,1024])) -> (s32[], \
bf16[4,256,1024], /*index=2*/bf16[1,256,1024]) {
  %wide.param.0 = (s32[]{:T(128)}, bf16[4,256,1024]{2,1,0:T(8,128)(2,1)}, \
/*index=2*/bf16[1,256,1024]{2,1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[4,256,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.0), index=1
  %w = bf16[1,256,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.0), index=2
  %collective-permute-start = (bf16[1,256,1024]{2,1,0:T(8,128)(2,1)S(1)}, \
bf16[1,256,1024]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), \
channel_id=4, source_target_pairs={{0,4},{4,8},{8,12},{12,0},{2,6},{6,10},{10,14},{14,2},{1,5},\
{5,9},{9,13},{13,1},{3,7},{7,11},{11,15},{15,3}}, metadata={op_name="jit(step)/jvp()/while/body/\
bsd,df->bsf/dot_general" stack_frame_id=20}, backend_config={"flag_configs":[]}
  %all-gather.18 = bf16[4,512,1024]{2,1,0:T(8,128)(2,1)} all-gather(%x), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=1,'axis_3'=2] {'axis_1'}, dimensions={1}, \
use_global_device_ids=true, metadata={op_name="jit(step)/jvp()/while/body/bsd,df->bsf/dot_general"}
  %collective-permute-done = bf16[1,256,1024]{2,1,0:T(8,128)(2,1)} \
collective-permute-done(%collective-permute-start)
  %all-gather.19 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%collective-permute-done), \
channel_id=42, replica_groups=[4,4]<=[4,2,2]T(2,1,0), dimensions={2}, use_global_device_ids=true
  %fusion.147 = bf16[4,256,1024]{2,1,0:T(8,128)(2,1)} fusion(%all-gather.18), kind=kCustom, \
calls=%all-reduce-scatter.clone.1, metadata={op_name="jit(step)/jvp()/while/body/bsf,fd->bsd/\
dot_general" stack_frame_id=21}, backend_config={"flag_configs":[]}
  %get-tuple-element.9 = s32[]{:T(128)} get-tuple-element(%wide.param.0), index=0
  %copy.71 = s32[]{:T(128)} copy(%get-tuple-element.9)
  %constant.69 = s32[]{:T(128)} constant(1)
  %add.228 = s32[]{:T(128)} add(%copy.71, %constant.69)
  ROOT %tuple = (s32[], bf16[4,256,1024], bf16[1,256,1024]) tuple(%add.228, %fusion.147, %w)
}

%region_1 (wide.param.3: (s32[], bf16[4,256,1024], /*index=2*/bf16[1,256,1024])) -> pred[] {
  %constant.74.clone.1 = s32[]{:T(128)} constant(48)
  %wide.param.3 = (s32[]{:T(128)}, bf16[4,256,1024]{2,1,0}, bf16[1,256,1024]{2,1,0}) parameter(0)
  %get-tuple-element.270 = s32[]{:T(128)} get-tuple-element(%wide.param.3), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.270, %constant.74.clone.1), direction=LT
}

ENTRY %main.9_spmd (param.14: bf16[4,256,1024], param.15: bf16[1,256,1024]) -> f32[] {
  %param.14 = bf16[4,256,1024]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param.15 = bf16[1,256,1024]{2,1,0:T(8,128)(2,1)} parameter(1)
  %constant.80.clone = s32[]{:T(128)} constant(0)
  %copy.82 = s32[]{:T(128)} copy(%constant.80.clone)
  %tuple.84 = (s32[]{:T(128)}, bf16[4,256,1024]{2,1,0:T(8,128)(2,1)}, \
/*index=2*/bf16[1,256,1024]{2,1,0}) tuple(%copy.82, %param.14, %param.15)
  %while.32 = (s32[]{:T(128)}, bf16[4,256,1024]{2,1,0:T(8,128)(2,1)}, \
/*index=2*/bf16[1,256,1024]{2,1,0}) while(%tuple.84), condition=%region_1, body=%region_0, \
metadata={op_name="jit(step)/jvp()/while" stack_frame_id=15}
  %fusion.100 = f32[]{:T(128)} fusion(%while.32), kind=kLoop, calls=%add.clone
  ROOT %all-reduce.6 = f32[]{:T(128)} all-reduce(%fusion.100), channel_id=38, replica_groups={}, \
use_global_device_ids=true, to_apply=%add.clone, metadata={op_name="jit(step)/reduce_sum"}
}
"""


def test_the_text_of_a_tpu_program():
  """Loops that only their condition bounds, fused reduce-scatters, and all ways to print groups."""
  shift, gather, layer, scatter, total = collectives_of(TPU)
  assert [c.times for c in (shift, gather, layer, scatter, total)] == [48, 48, 48, 48, 1]

  assert (shift.kind, shift.operand_bytes, shift.bytes) == ("collective-permute", 2**19, 2**19)
  assert axes_of(shift, MESH) == ("fsdp",)
  assert shift.op_name == "jit(step)/jvp()/while/body/bsd,df->bsf/dot_general"

  assert (gather.operand_bytes, gather.result_bytes, gather.bytes) == (2**21, 2**22, 2**21)
  assert gather.groups[:3] == ((0, 2), (1, 3), (4, 6))
  assert axes_of(gather, MESH) == ("context",)

  assert (layer.operand_bytes, layer.result_bytes, layer.bytes) == (2**19, 2**21, 3 * 2**19)
  assert layer.groups[0] == (0, 4, 8, 12)

  assert (scatter.kind, scatter.name) == ("reduce-scatter", "all-reduce.14")
  assert (scatter.operand_bytes, scatter.result_bytes) == (2**22, 2**21)
  assert scatter.bytes == 2**21
  assert scatter.op_name == "jit(step)/jvp()/while/body/bsf,fd->bsd/dot_general"

  assert (total.group_size, total.operand_bytes) == (16, 4)
  assert axes_of(total, MESH) == ("fsdp", "context", "tensor")
  assert costliest([shift, gather, layer, scatter, total], count=2) == [gather, scatter]


@pytest.mark.parametrize(
  ("start", "end", "step", "times"), [(0, 48, 2, 24), (1, 48, 1, 47), (0, 7, 2, 4), (9, 8, 1, 0)]
)
def test_the_length_of_a_loop_follows_from_its_start_end_and_step(start, end, step, times):
  """TPU programs unroll the loops of their matrix products by two."""
  text = TPU.replace("s32[]{:T(128)} constant(0)", f"s32[]{{:T(128)}} constant({start})")
  text = text.replace("constant(48)", f"constant({end})")
  text = text.replace("s32[]{:T(128)} constant(1)", f"s32[]{{:T(128)}} constant({step})")
  assert collectives_of(text)[0].times == times


def test_a_loop_of_unknown_length_is_refused_only_if_it_communicates():
  with pytest.raises(ValueError, match=r"while\.32"):
    collectives_of(TPU.replace("constant(48)", "parameter(1)"))
  with pytest.raises(ValueError, match=r"while\.32"):
    collectives_of(TPU.replace("add(%copy.71", "multiply(%copy.71"))
  silent = TPU.replace(" all-gather(", " copy(").replace(" all-reduce(", " copy(")
  silent = silent.replace(" collective-permute-start(", " copy-start(")
  assert collectives_of(silent.replace("constant(48)", "parameter(1)")) == []


# As XLA for CUDA prints a step for 2 hosts of 8 GPUs, cut down; and its older asynchronous wrapper.
GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%add.clone (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %add = bf16[] add(%x, %y)
}

%async_computation (param_0: f32[16,8]) -> f32[1,8] {
  %param_0 = f32[16,8]{1,0} parameter(0)
  ROOT %reduce-scatter.7 = f32[1,8]{1,0} reduce-scatter(%param_0), channel_id=9, \
replica_groups=[1,16]<=[16], dimensions={0}, to_apply=%add.clone
}

%body (p: (s32[], bf16[256,1024], bf16[4,512,1024])) -> (s32[], bf16[256,1024], bf16[4,512,1024]) {
  %p = (s32[], bf16[256,1024]{1,0}, bf16[4,512,1024]{2,0,1}) parameter(0)
  %a = bf16[256,1024]{1,0} get-tuple-element(%p), index=1
  %h = bf16[4,512,1024]{2,0,1} get-tuple-element(%p), index=2
  %all-gather-start.1 = ((bf16[256,1024]{1,0}, bf16[256,1024]{1,0}), (bf16[1024,1024]{1,0}, \
bf16[1024,1024]{1,0})) all-gather-start(%a, %a), channel_id=3, \
replica_groups=[4,4]<=[4,2,2]T(2,1,0), dimensions={0}, use_global_device_ids=true, \
metadata={op_name="jit(step)/while/body/(mlp/up:mlp/down)"}, backend_config={"is_sync":false}
  %all-gather-done.1 = (bf16[1024,1024]{1,0}, bf16[1024,1024]{1,0}) \
all-gather-done(%all-gather-start.1)
  %reduce-scatter-start = ((bf16[4,512,1024]{2,0,1}), bf16[4,256,1024]{2,0,1}) \
reduce-scatter-start(%h), channel_id=21, replica_groups=[8,2]<=[4,2,2]T(0,2,1), dimensions={1}, \
to_apply=%add.clone
  %reduce-scatter-done = bf16[4,256,1024]{2,0,1} reduce-scatter-done(%reduce-scatter-start)
  %all-reduce-start = bf16[4,256,1024]{2,0,1} all-reduce-start(%reduce-scatter-done), \
channel_id=6, replica_groups=[8,2]<=[16], to_apply=%add.clone
  %all-reduce-done = bf16[4,256,1024]{2,0,1} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (s32[], bf16[256,1024], bf16[4,512,1024]) tuple(%i, %a, %h)
}

%cheap (q: f32[16,8]) -> f32[16,8] {
  %q = f32[16,8]{1,0} parameter(0)
  ROOT %all-to-all.1 = f32[16,8]{1,0} all-to-all(%q), replica_groups={{0,1},{2,3}}, dimensions={0}
}

%dear (r: f32[16,8]) -> f32[16,8] {
  %r = f32[16,8]{1,0} parameter(0)
  ROOT %all-reduce.8 = f32[16,8]{1,0} all-reduce(%r), replica_groups={{0,1},{2,3}}, \
to_apply=%add.clone
}

ENTRY %main (t: (s32[], bf16[256,1024], bf16[4,512,1024]), u: f32[16,8]) -> f32[16,8] {
  %t = (s32[], bf16[256,1024]{1,0}, bf16[4,512,1024]{2,0,1}) parameter(0)
  %u = f32[16,8]{1,0} parameter(1)
  %while.22 = (s32[], bf16[256,1024]{1,0}, bf16[4,512,1024]{2,0,1}) while(%t), condition=%cond, \
body=%body, backend_config={"known_trip_count":{"n":"48"},"known_init_step":{"init":"0","step":"1"}}
  %start = ((f32[16,8]{1,0}), f32[1,8]{1,0}) async-start(%u), calls=%async_computation, \
metadata={op_name="jit(step)/loss"}
  %done = f32[1,8]{1,0} async-done(%start), calls=%async_computation
  %one = f32[16,8]{1,0} all-reduce(%u), replica_groups=[16,1]<=[16], to_apply=%add.clone
  ROOT %conditional = f32[16,8]{1,0} conditional(%i, %u, %u), branch_computations={%cheap, %dear}
}
"""


def test_the_text_of_a_gpu_program():
  """Asynchronous pairs and wrappers count once, of a conditional the dearer branch."""
  gather, scatter, reduce, wrapped, branch = collectives_of(GPU)
  assert [c.times for c in (gather, scatter, reduce, wrapped, branch)] == [48, 48, 48, 1, 1]
  assert (gather.operand_bytes, gather.bytes) == (2 * 2**19, 3 * 2 * 2**19)
  assert axes_of(gather, MESH) == ("fsdp",)
  assert gather.op_name == "jit(step)/while/body/(mlp/up:mlp/down)"
  assert (scatter.operand_bytes, scatter.bytes, axes_of(scatter, MESH)) == (
    2**22,
    2**21,
    ("context",),
  )
  assert axes_of(reduce, MESH) == ("tensor",)
  assert (wrapped.kind, wrapped.op_name, wrapped.bytes) == (
    "reduce-scatter",
    "jit(step)/loss",
    512 * 15 // 16,
  )
  assert branch.name == "all-reduce.8"
  assert summary([gather, scatter, wrapped]) == {
    "all-gather": {"count": 48, "bytes": 48 * 3 * 2**20},
    "reduce-scatter": {"count": 49, "bytes": 48 * 2**21 + 480},
  }


def groups_of(printed, devices=16):
  text = f"""HloModule m, num_partitions={devices}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={printed}, to_apply=%add
}}
"""
  return {tuple(sorted(group)) for group in collectives_of(text)[0].groups}


def test_groups_by_mesh_axes_are_those_of_the_mesh():
  ids = np.arange(16).reshape(4, 2, 2)
  by_mesh = groups_of("mesh['a'=4,'b'=2,'c'=2] {'a','c'}")
  assert by_mesh == {tuple(ids[:, i].ravel()) for i in range(2)}
  assert by_mesh == groups_of("[2,8]<=[4,2,2]T(1,0,2)")
  assert groups_of("mesh[a=4,b=2,c=2] {a,c}") == by_mesh
  # Parts of an axis: a of size 4 is 2 x 2.
  halves = np.arange(16).reshape(2, 2, 2, 2)
  outer = {tuple(sorted(g)) for g in halves.transpose(1, 2, 3, 0).reshape(-1, 2).tolist()}
  inner = {tuple(sorted(g)) for g in halves.transpose(0, 2, 3, 1).reshape(-1, 2).tolist()}
  assert groups_of("mesh['a'=4,'b'=2,'c'=2] {'a':(1)2}") == outer
  assert groups_of("mesh['a'=4,'b'=2,'c'=2] {'a':(2)2}") == inner
  # Other orders of the devices, as a transposed iota and listed.
  turned = {tuple(sorted(g)) for g in np.arange(8).reshape(4, 2).T.reshape(2, 4).tolist()}
  assert groups_of("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 8) == turned
  assert groups_of("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'b'}", 8) == turned


@pytest.mark.parametrize(
  ("group", "axes"),
  [
    ((0, 1), ("tensor",)),
    ((0, 2), ("context",)),
    ((1, 5, 9, 13), ("fsdp",)),
    ((0, 1, 2, 3), ("context", "tensor")),
    ((3,), ()),
    ((0, 5), ("fsdp", "tensor")),
  ],
)
def test_axes_of_a_group(group, axes):
  assert axes_of_group(group, MESH) == axes


@pytest.mark.parametrize(
  ("kind", "sent", "result"),
  [
    ("all-reduce", 2 * 800 * 3 // 4, 800),
    ("all-gather", 2400, 3200),
    ("reduce-scatter", 600, 200),
    ("all-to-all", 600, 800),
  ],
)
def test_ring_bytes(kind, sent, result):
  c = Collective(kind, "x", "", operand_bytes=800, groups=((0, 1, 2, 3),), times=3)
  assert (c.bytes, c.result_bytes, c.total_bytes) == (sent, result, 3 * sent)

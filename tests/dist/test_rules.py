"""Rules: logical axes to shardings, for parameters, optimizer state and batches; and the guard."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.dist.rules import (
  DEFAULT_RULES,
  axes_by_path,
  batch_shardings,
  check_rules,
  check_sharded,
  state_shardings,
)
from vidgen.errors import ConfigError
from vidgen.nn.partition import partition_spec
from vidgen.systems.stage import ArraySpec

P = PartitionSpec
RULES = (("batch", ("data", "fsdp")), ("embed", "fsdp"), ("mlp", "tensor"), ("mlp", "fsdp"))


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(
  ("shape", "axes", "spec"),
  [
    ((4, 6), ("embed", "mlp"), P("fsdp", "tensor")),
    ((4, 6), ("mlp", "embed"), P("tensor", "fsdp")),
    ((4, 5), ("embed", "mlp"), P("fsdp")),  # 5 does not divide: left whole
    ((3, 6), ("embed", "mlp"), P(None, "tensor")),
    ((4, 4), ("embed", "embed"), P("fsdp")),  # an axis serves one dimension only
    ((4, 4), ("mlp", "mlp"), P("tensor", "fsdp")),  # the second rule of the name is the next best
    ((8, 4), ("batch", None), P(("data", "fsdp"))),
    ((4, 6), ("unknown", None), P()),
    ((), (), P()),
  ],
)
def test_the_first_rule_that_fits_counts(shape, axes, spec, mesh):
  assert partition_spec(shape, axes, mesh=mesh.shape, rules=RULES) == spec


def test_axes_of_one_device_are_left_out():
  mesh = make_mesh(MeshConfig(data=8))
  assert partition_spec((8, 4), ("batch", "embed"), mesh=mesh.shape, rules=RULES) == P("data")


def test_unknown_mesh_axes_are_refused(mesh):
  check_rules(DEFAULT_RULES, mesh.axis_names)
  with pytest.raises(ConfigError, match="'embed' -> 'model': mesh axes are data, fsdp"):
    check_rules((("embed", "model"),), mesh.axis_names)


PARAMS = {"a": {"kernel": jnp.zeros((256, 128)), "bias": jnp.zeros(128)}, "b": jnp.zeros((3, 2))}
AXES = {"a": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "b": (None, "embed")}


def specs(tree):
  return jax.tree.map(lambda s: s.spec, tree)


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.scale_by_factored_rms()])
def test_optimizer_state_lies_as_its_parameter(tx, mesh):
  state = {"params": PARAMS, "opt": jax.eval_shape(tx.init, PARAMS)}
  shardings = state_shardings(state, AXES, params=PARAMS, mesh=mesh, rules=RULES)
  assert specs(shardings["params"]) == {
    "a": {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
    "b": P(None, "fsdp"),
  }
  by_path = {
    jax.tree_util.keystr(path, simple=True, separator="/"): s.spec
    for path, s in jax.tree_util.tree_leaves_with_path(shardings["opt"])
  }
  found = {name.split("/", 1)[-1]: spec for name, spec in by_path.items()}
  assert found["count"] == P()
  if isinstance(tx.init(PARAMS), tuple) and "mu/a/kernel" in found:
    assert found["mu/a/kernel"] == found["nu/a/kernel"] == P("fsdp", "tensor")
    assert found["mu/b"] == P(None, "fsdp")
  else:  # Adafactor: the factors of [256, 128] lie as what is left of it
    rows = {name: spec for name, spec in by_path.items() if "v_" in name and "kernel" in name}
    assert sorted(map(str, rows.values())) == sorted(map(str, [P("fsdp"), P("tensor")]))


def test_axes_that_do_not_match_the_parameters_are_listed():
  with pytest.raises(ConfigError, match=r"parameters: - b, \+ c$"):
    axes_by_path({"a": 1, "b": 2}, {"a": (None,), "c": (None,)})


def test_a_batch_that_does_not_divide_is_refused(mesh):
  def spec(size):
    return {"video": ArraySpec((size, 4), jnp.float32, ("batch", None))}

  assert batch_shardings(spec(8), mesh=mesh, rules=RULES)["video"].spec == P(("data", "fsdp"))
  with pytest.raises(ConfigError, match="batch of 6 does not divide over 4 devices"):
    batch_shardings(spec(6), mesh=mesh, rules=RULES)


def test_the_guard_finds_arrays_that_do_not_lie_as_promised(mesh):
  sharded = NamedSharding(mesh, P(("fsdp", "tensor")))
  whole = NamedSharding(mesh, P())
  state = {"kernel": jax.device_put(jnp.zeros((8, 8)), sharded)}
  check_sharded(state, {"kernel": sharded})
  with pytest.raises(ConfigError, match="kernel.*promised was"):
    check_sharded({"kernel": jax.device_put(jnp.zeros((8, 8)), whole)}, {"kernel": sharded})


def test_the_guard_finds_parameters_that_no_rule_splits(mesh):
  sharded, whole = NamedSharding(mesh, P("fsdp", "tensor")), NamedSharding(mesh, P())
  big, small = jnp.zeros((64, 64)), jnp.zeros((2, 4))
  promised = {"big": sharded, "small": whole}
  check_sharded(jax.device_put({"big": big, "small": small}, promised), promised)
  promised = {"big": whole, "small": sharded}
  with pytest.raises(ConfigError, match=r"holds 299.4% more of the state than .* most of it big"):
    check_sharded(jax.device_put({"big": big, "small": small}, promised), promised)
  # what a rule splits over one of two axes is twice its share
  promised = {"big": NamedSharding(mesh, P("fsdp")), "small": sharded}
  with pytest.raises(ConfigError, match=r"holds 99.8% more of the state than .* most of it big"):
    check_sharded(jax.device_put({"big": big, "small": small}, promised), promised)
  # on a mesh that splits only the batch there is nothing to promise
  alone = make_mesh(MeshConfig(data=8))
  promised = {"big": NamedSharding(alone, P())}
  check_sharded(jax.device_put({"big": big}, promised), promised)

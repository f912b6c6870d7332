"""Programs: where the state lies between steps, and that it makes no difference to them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained_run import experiment, stage

from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.train.programs import Programs


def two_steps(**train):
  """The state after two steps on fsdp 2, the held-out loss, and the shardings of the state."""
  base = experiment()
  changed = dataclasses.replace(
    base,
    train=dataclasses.replace(base.train, **train),
    mesh=MeshConfig(data=1, fsdp=2),
  )
  mesh = make_mesh(changed.mesh, devices=jax.devices()[:2])
  with on_mesh(mesh, rules=changed.rules):
    programs = Programs(changed, stage=stage(), mesh=mesh)
    rng = np.random.default_rng(0)
    batch = {name: spec.zeros() for name, spec in programs.specs["video"].items()}
    batch["video"] = rng.uniform(-1, 1, batch["video"].shape).astype(np.float32)
    batch["text_mask"][:, :5] = True
    batch["text"][:, :5] = 7
    state, step = programs.init(), programs.train("video")
    for _ in range(2):
      state, _ = step(state, programs.put(batch)[1])
    loss = programs.evaluate(state.ema, [batch])["loss"]
  return state, float(loss), programs


def kinds(tree):
  return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def test_offloading_changes_where_the_state_lies_and_nothing_else():
  want, want_loss, _ = two_steps()
  got, loss, programs = two_steps(offload=("optimizer", "ema"))
  assert kinds(got.opt_state) == kinds(got.ema) == {"pinned_host"}
  assert kinds(got.params) == kinds(want.ema) == {"device"}
  assert loss == want_loss
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
  assert kinds(programs.abstract.ema) == {"pinned_host"}  # and so a restored one


def test_a_bfloat16_average_is_near_and_half_as_large():
  want, want_loss, _ = two_steps()
  got, loss, _ = two_steps(ema_dtype="bfloat16")
  for a, b in zip(jax.tree.leaves(got.ema), jax.tree.leaves(want.ema), strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-6, atol=1e-6)
  assert loss == pytest.approx(want_loss, rel=0.02)

"""Checkpoints: what was saved comes back bit for bit, on any mesh, and nothing good is lost."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved import CONFIG, assert_same_bits, like, save, state

from vidgen.errors import CheckpointError
from vidgen.train import manifest as mf
from vidgen.train.checkpoint import Checkpoints


def matrix_sharding(shape, axes):
  devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  mesh = jax.sharding.Mesh(devices, ("x", "y"))
  return jax.NamedSharding(mesh, jax.P(*axes))


def test_everything_comes_back_bit_for_bit(tmp_path):
  save(tmp_path, 7)
  restored = Checkpoints(tmp_path).restore(None, like(state(7)))
  assert_same_bits(restored.state, state(7))
  assert (restored.step, restored.data_state, restored.config) == (7, {"position": 7}, CONFIG)


def test_any_mesh_reads_what_any_mesh_wrote(tmp_path):
  meshes = [((4, 1), ("x", "y")), ((2, 1), ("x", "y")), ((1, 1), ("x",)), ((2, 4), ("y", "x"))]
  meshes += [((8, 1), (None, "x")), ((2, 2), (("x", "y"),))]
  held, step = state(1), 0
  for shape, axes in meshes:  # each mesh restores what the one before saved, and saves it again
    checkpoints = Checkpoints(tmp_path, keep=1)
    sharding = matrix_sharding(shape, axes)
    if step:
      held = checkpoints.restore(step, like(state(1), sharding)).state
    else:
      shardings = jax.tree.map(lambda leaf: leaf.sharding, like(held, sharding))
      held = jax.device_put(held, shardings)
    assert held.params["block"]["kernel"].sharding == sharding
    assert_same_bits(held, state(1))
    step += 1
    checkpoints.save(step, held, {}, CONFIG)
    checkpoints.close()


def test_digests_do_not_depend_on_the_mesh_and_do_on_every_bit(tmp_path):
  save(tmp_path / "whole", 5)
  checkpoints = Checkpoints(tmp_path / "split")
  sharding = matrix_sharding((4, 2), ("x", "y"))
  shardings = jax.tree.map(lambda leaf: leaf.sharding, like(state(5), sharding))
  checkpoints.save(5, jax.device_put(state(5), shardings), {"position": 5}, CONFIG)
  checkpoints.close()
  digests = Checkpoints(tmp_path / "whole").digests(5)
  assert checkpoints.digests(5) == digests
  assert set(digests) == {"params", "ema", "optimizer", "data"}

  def flipped(tree):
    bits = np.array(tree["block"]["kernel"]).view(np.uint32)
    bits[3, 3] ^= 1
    return tree | {"block": tree["block"] | {"kernel": jnp.asarray(bits.view(np.float32))}}

  whole = state(5)
  clip, adam, extra = whole.opt_state
  changes = {
    "params": dataclasses.replace(whole, params=flipped(whole.params)),
    "ema": dataclasses.replace(whole, ema=flipped(whole.ema)),
    "optimizer": dataclasses.replace(
      whole, opt_state=(clip, adam, extra | {"mask": ~extra["mask"]})
    ),
  }
  for name, changed in changes.items():
    other = Checkpoints(tmp_path / name)
    other.save(5, changed, {"position": 5}, CONFIG)
    other.close()
    differing = {k for k, v in other.digests(5).items() if v != digests[k]}
    assert differing == {name}
  counted = Checkpoints(tmp_path / "counted")
  counted.save(5, dataclasses.replace(whole, bad_steps=jnp.int32(1)), {"position": 6}, CONFIG)
  counted.close()
  assert {k for k, v in counted.digests(5).items() if v != digests[k]} == {"optimizer", "data"}


def test_the_step_may_donate_its_state_as_soon_as_save_returns(tmp_path):
  @functools.partial(jax.jit, donate_argnums=0)
  def scramble(tree):
    return jax.tree.map(lambda leaf: leaf + 1, tree)

  params = {"w": jnp.zeros((512, 512))}
  checkpoints = Checkpoints(tmp_path, keep=9)
  for step in range(1, 6):
    params = scramble(params)
    held = {"step": jnp.int32(step), "params": params, "ema": None, "opt_state": ()}
    checkpoints.save(step, held, {}, CONFIG)
  checkpoints.wait()
  for step in range(1, 6):
    np.testing.assert_array_equal(
      checkpoints.restore_params("params", step=step)["w"], np.full((512, 512), step, np.float32)
    )
  checkpoints.close()


def test_parameters_come_alone_without_the_optimizer(tmp_path):
  save(tmp_path, 7)
  checkpoints = Checkpoints(tmp_path)
  assert_same_bits(checkpoints.restore_params(), jax.tree.map(np.asarray, state(7).ema))
  sharding = matrix_sharding((2, 4), ("x", "y"))
  params = checkpoints.restore_params("params", like=like(state(7).params, sharding))
  assert params["block"]["kernel"].sharding == sharding
  assert_same_bits(params, state(7).params)


def test_a_state_without_average_or_optimizer_arrays_is_saved(tmp_path):
  bare = {"step": jnp.int32(1), "params": {"w": jnp.ones(3)}, "ema": None, "opt_state": ()}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, bare, {}, CONFIG)
  checkpoints.wait()
  assert_same_bits(checkpoints.restore(1, like(bare)).state, bare)
  with pytest.raises(CheckpointError, match="holds no 'ema'"):
    checkpoints.restore_params("ema")


def test_a_typed_key_or_an_ambiguous_name_is_refused_before_anything_is_written(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for params in ({"key": jax.random.key(0)}, {"a/b": jnp.ones(1)}, {"1": {1: 1.0}, "1/1": 2.0}):
    bad = {"step": jnp.int32(1), "params": params, "ema": None, "opt_state": ()}
    with pytest.raises(ValueError, match="not an array|not unique"):
      checkpoints.save(1, bad, {}, CONFIG)
  assert list(tmp_path.iterdir()) == []


def test_a_mismatch_names_every_differing_leaf_with_both_shapes_and_dtypes(tmp_path):
  save(tmp_path, 7)
  wanted = like(state(7))
  block = wanted.params["block"]
  wanted.params = {
    "block": {
      "kernel": jax.ShapeDtypeStruct((64, 33), jnp.float32),
      "bias": jax.ShapeDtypeStruct((32,), jnp.float32),  # Orbax alone would cast, silently
      "odd": block["odd"],
      "gate": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
  }
  with pytest.raises(CheckpointError) as error:
    Checkpoints(tmp_path).restore(7, wanted)
  assert str(error.value).splitlines()[1:] == [
    "  - params/block/bias bfloat16[32]",
    "  + params/block/bias float32[32]",
    "  + params/block/gate int32[2]",
    "  - params/block/kernel float32[64,32]",
    "  + params/block/kernel float32[64,33]",
    "  - params/scale float32[]",
  ]


def test_the_last_few_and_the_round_ones_are_kept(tmp_path):
  save(tmp_path, 1, 2, 10, 11, 12, 20, 21, 22, 23, keep=2, keep_every=10)
  assert Checkpoints(tmp_path).steps() == [10, 20, 22, 23]
  assert {p.name for p in tmp_path.iterdir()} == {"00000010", "00000020", "00000022", "00000023"}


def test_readers_change_nothing_and_the_writer_sweeps_only_what_is_its_own(tmp_path):
  save(tmp_path, 7)
  leftovers = ["00000009.saving", "00000009.saving.orbax-checkpoint-tmp", "00000003.deleted"]
  others = ["notes", "00000009.saving.mine"]
  for name in leftovers + others:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("x")
  reader = Checkpoints(tmp_path)
  reader.restore(None, like(state(7)))
  reader.verify()
  assert reader.steps() == [7]
  assert {p.name for p in tmp_path.iterdir()} == {"00000007", *leftovers, *others}
  Checkpoints(tmp_path).prepare()
  assert {p.name for p in tmp_path.iterdir()} == {"00000007", *others}


def test_a_step_saved_or_restored_here_is_not_written_again(tmp_path):
  save(tmp_path, 7)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.restore(7, like(state(7)))
  before = (tmp_path / "00000007" / "manifest.json").stat()
  checkpoints.save(7, state(7), {"position": 7}, CONFIG)
  checkpoints.close()
  assert (tmp_path / "00000007" / "manifest.json").stat() == before


def test_going_back_to_an_older_step_replaces_the_newer_ones(tmp_path):
  save(tmp_path, 10, 20, 30, 40)
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.restore(20, like(state(20)))
  checkpoints.save(30, state(31), {"position": 31}, CONFIG)
  checkpoints.close()
  assert checkpoints.steps() == [20, 30]
  assert_same_bits(checkpoints.restore(30, like(state(31))).state, state(31))


def test_asking_for_what_is_not_there_says_what_is(tmp_path):
  with pytest.raises(CheckpointError, match="no checkpoint is there"):
    Checkpoints(tmp_path / "absent").restore(None, like(state(1)))
  save(tmp_path, 1, 2)
  with pytest.raises(CheckpointError, match=r"no step 3; there are \[1, 2\]"):
    Checkpoints(tmp_path).restore(3, like(state(1)))
  with pytest.raises(ValueError, match="keep must be at least 1"):
    Checkpoints(tmp_path, keep=0)


def test_the_config_and_data_position_are_plain_json(tmp_path):
  save(tmp_path, 7)
  assert json.loads((tmp_path / "00000007/config/config.json").read_text()) == CONFIG
  data = tmp_path / "00000007/data/position.json"
  assert json.loads(data.read_text()) == {"position": 7}
  with pytest.raises((TypeError, ValueError)):
    Checkpoints(tmp_path).save(8, state(8), {"position": float("nan")}, CONFIG)


def test_a_checkpoint_that_has_its_position_once_for_every_process_is_read(tmp_path):
  """As earlier versions wrote them; positions that differ are damage."""
  save(tmp_path, 7)
  directory = tmp_path / "00000007"
  manifest = mf.read(directory)
  position = directory / "data" / "position.json"
  for process, text in enumerate([position.read_text()] * 2):
    (directory / "data" / f"{process:05d}-of-00002.json").write_text(text)
  position.unlink()
  rewrite(directory, manifest)
  restored = Checkpoints(tmp_path).restore(None, like(state(7)))
  assert restored.data_state == Checkpoints(tmp_path).read_data_state() == {"position": 7}
  (directory / "data" / "00001-of-00002.json").write_text('{"position": 8}')
  rewrite(directory, manifest)
  with pytest.raises(CheckpointError, match="2 files that hold no one position"):
    Checkpoints(tmp_path).read_data_state()


def rewrite(directory, manifest):
  """The manifest of files that were changed on purpose."""
  data = [json.loads(file.read_text()) for file in sorted((directory / "data").glob("*.json"))]
  files = tuple(mf.record_files(directory))
  mf.write(
    directory,
    dataclasses.replace(manifest, files=files, digests=mf.digests(manifest.arrays, data)),
  )

"""A run's parameters come back as they were saved, on any devices, or not at all."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from trained_run import experiment, params, write_run

from vidgen import config as cfg
from vidgen.dist.mesh import MeshConfig
from vidgen.errors import CheckpointError, ConfigError
from vidgen.train import trained as module
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.trained import load_trained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("weights", "seed"), [("ema", 0), ("params", 1)])
def test_the_asked_weights_come_back_bit_for_bit(workdir, weights, seed):
  trained = load_trained(workdir, weights=weights)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(trained.params), params(seed))
  assert (trained.step, trained.weights, trained.fps) == (5, weights, 4.0)
  assert trained.experiment == experiment()
  assert trained.config_digest == cfg.digest(experiment())
  assert trained.params_digest == Checkpoints(workdir / "checkpoints").digests(5)[weights]
  assert len(jax.tree.leaves(trained.params)[0].sharding.device_set) == 8


def test_a_mesh_that_does_not_fit_the_devices_gives_way(workdir, monkeypatch):
  mesh = MeshConfig(data=1, fsdp=1, context=1, tensor=3)
  wide = dataclasses.replace(experiment(), mesh=mesh)
  monkeypatch.setattr(module, "from_plain", lambda tree: wide)
  trained = load_trained(workdir)
  assert dict(trained.mesh.shape) == {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(trained.params), params(0))


def test_batches_grow_to_divide_over_the_devices(workdir):
  trained = load_trained(workdir)
  assert [trained.batch_sharding(size)[0] for size in (1, 8, 9, 16)] == [8, 8, 16, 16]


def test_settings_are_the_experiments_unless_given(workdir):
  trained = load_trained(workdir)
  assert trained.settings() == experiment().sample
  assert trained.settings(steps=2, guidance_scale=1.0).guidance_scale == 1.0
  with pytest.raises(ConfigError, match="steps must be at least 1"):
    trained.settings(steps=0)


def test_runs_and_steps_that_are_not_there_are_refused(workdir, tmp_path):
  for directory, step, message in (
    (tmp_path, None, "no checkpoints"),
    (workdir, 6, r"no step 6; there are \[5\]"),
  ):
    with pytest.raises(CheckpointError, match=message):
      load_trained(directory, step=step)


def test_a_damaged_checkpoint_is_refused(tmp_path):
  write_run(tmp_path)
  path = tmp_path / "checkpoints" / "00000005" / "config" / "config.json"
  config = json.loads(path.read_text())
  config["sample"]["steps"] += 1
  path.write_text(json.dumps(config))
  with pytest.raises(CheckpointError, match=r"config/config\.json"):
    load_trained(tmp_path)

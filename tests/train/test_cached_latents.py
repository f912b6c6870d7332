"""A stage on cached latents is trained as one whose clips are encoded batch by batch."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from latent_run import (
  autoencoder,
  build_data,
  measure,
  t2v,
  untrained_autoencoder,
  write_config,
)
from saved import assert_same_bits

from vidgen.cli import main
from vidgen.config import digest
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.systems import make_stage
from vidgen.train.autoencoder import STATISTICS, describe_autoencoder, open_autoencoder
from vidgen.train.encoded import open_data
from vidgen.train.loop import train
from vidgen.train.programs import Programs
from vidgen.train.trained import load_trained

STEPS = 4
FEEDS = {"encoded": "", "cached": "latents"}


def experiment(root, *, latents="", steps=STEPS, watch=0, dtype="float32") -> Any:
  """Both buckets, captions dropped, one clip damaged; held-out scores and sheets by `watch`."""
  one: Any = t2v(
    root / "tae", steps=steps, save_every=2, log_every=1, sheet_count=2, eval_every=watch,
    sheet_every=watch,
  )  # fmt: skip
  inputs = dataclasses.replace(
    one.inputs, latents=latents, bad_fraction=1.0, temporal_crop="center", shuffle=True,
    caption_dropout=0.3, autoencoder=dataclasses.replace(one.inputs.autoencoder, dtype=dtype),
  )  # fmt: skip
  return dataclasses.replace(one, inputs=inputs, mesh=MeshConfig(data=-1, fsdp=1))


def spoil(root):
  """Damages one clip of the training split where no header of the shard tells of it."""
  shard = next((root / "video" / "train").glob("*.tar"))
  content = shard.read_bytes()
  shard.write_bytes(content.replace(b"moov", b"what", 1))


def cache(root, *more, **fields):
  config = write_config(root / "t2v.py", experiment(root, **fields))
  command = ["data", "latents", str(root / "data"), "--config", str(config), "--cache"]
  return main([*command, "--batch-size", "8", *more])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with data, a measured autoencoder, and its latents."""
  root = tmp_path_factory.mktemp("root")
  build_data(root / "data")
  spoil(root / "data")
  untrained_autoencoder(root / "tae")
  measure(root / "data", root / "tae", write_config(root / "t2v.py", experiment(root)))
  assert cache(root, "--json", str(root / "said.json")) == 0
  assert cache(root, "--out", str(root / "data" / "rounded"), dtype="bfloat16") == 0
  return root


def mesh_of(devices):
  return make_mesh(MeshConfig(data=devices, fsdp=1), devices=jax.devices()[:devices])


def opened(one, root, workdir, *, devices=8):
  return open_data(one, str(root / "data"), workdir=workdir, mesh=mesh_of(devices))


def losses(one, root, workdir, *, devices):
  """The losses of the first steps, with the buckets of their batches; and the batches."""
  mesh, found, batches = mesh_of(devices), [], []
  data = opened(one, root, workdir, devices=devices)
  with on_mesh(mesh, rules=one.rules):
    programs = Programs(one, stage=make_stage(one.stage.name, one.stage.fields), mesh=mesh)
    state = programs.init()
    for _ in range(STEPS):
      bucket, batch = programs.put(next(data))
      batches.append({name: np.asarray(array) for name, array in batch.items()})
      state, metrics = programs.train(bucket)(state, batch)
      found.append((bucket, float(metrics["loss"])))
  bad = data.bad_samples
  data.close()
  return found, batches, bad


@pytest.mark.parametrize("devices", [1, 8])
def test_the_loss_is_that_of_encoding_on_the_fly(devices, root, tmp_path):
  ours, theirs = (
    losses(experiment(root, latents=x), root, tmp_path / feed, devices=devices)
    for feed, x in FEEDS.items()
  )
  assert [bucket for bucket, _ in ours[0]] == [bucket for bucket, _ in theirs[0]]
  assert {bucket for bucket, _ in ours[0]} == {"video", "image"}
  mine, others = (np.array([loss for _, loss in one[0]]) for one in (ours, theirs))
  assert np.ptp(mine) > 1e-4
  np.testing.assert_allclose(mine, others, rtol=1e-5)
  for batch, other in zip(ours[1], theirs[1], strict=True):
    assert set(batch) == set(other)
    for name in set(batch) - {"latents"}:
      np.testing.assert_array_equal(batch[name], other[name])
    # sums in another order; what is normalised of an untrained autoencoder varies little
    np.testing.assert_allclose(batch["latents"], other["latents"], atol=2e-4)


def test_rounded_latents_are_the_same_but_for_a_bit_here_and_there(root, tmp_path):
  """Where sums in another order fall on the other side of a step of bfloat16."""
  for devices in (1, 8):
    ours, theirs = (
      opened(experiment(root, latents=x, dtype="bfloat16"), root, tmp_path, devices=devices)
      for x in ("rounded", "")
    )
    pairs = [[np.asarray(next(data)["latents"]) for data in (ours, theirs)] for _ in range(3)]
    for mine, others in pairs:
      assert mine.dtype == others.dtype == np.float32
      np.testing.assert_allclose(mine, others, rtol=2**-7, atol=1e-6)
    assert np.mean(np.concatenate([(a != b).ravel() for a, b in pairs])) < 0.02
    ours.close()
    theirs.close()


def run(one, root, workdir, **options):
  stage = make_stage(one.stage.name, one.stage.fields)
  data = open_data(one, str(root / "data"), workdir=workdir, mesh=make_mesh(one.mesh))
  return train(one, stage=stage, data=data, workdir=workdir, **options)


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory):
  """A whole run on cached latents, with sheets of what it samples."""
  workdir = tmp_path_factory.mktemp("straight")
  run(experiment(root, latents="latents", watch=STEPS), root, workdir)
  return workdir


def test_a_run_from_the_cache_that_stopped_goes_on_bit_for_bit(root, straight, tmp_path):
  run(experiment(root, latents="latents", steps=2), root, tmp_path)
  state = run(experiment(root, latents="latents"), root, tmp_path)
  mine, theirs = (load_trained(path, weights="params").params for path in (tmp_path, straight))
  assert_same_bits(jax.device_get(mine), jax.device_get(theirs))
  assert int(state.step) == STEPS
  lines = [
    [json.loads(line)["loss"] for line in (path / "train.jsonl").open() if '"loss"' in line]
    for path in (tmp_path, straight)
  ]
  assert lines[0] == lines[1] and len(lines[0]) == STEPS


def test_a_run_goes_on_from_the_cache_where_it_was_encoding_before(root, tmp_path):
  """Data, autoencoder and position agree: only the key of the config is to be allowed."""
  run(experiment(root, steps=2), root, tmp_path)
  cached = experiment(root, latents="latents", steps=3)
  with pytest.raises(CheckpointError, match=r"otherwise:\n  inputs\.latents: '' -> 'latents'\n"):
    run(cached, root, tmp_path)
  assert int(run(cached, root, tmp_path, allowed=("inputs.latents",)).step) == 3


def test_what_was_trained_knows_whose_latents_and_has_held_out_scores_and_sheets(root, straight):
  wanted = describe_autoencoder(experiment(root).inputs.autoencoder).identity
  assert load_trained(straight).autoencoder == wanted
  rows = [json.loads(line) for line in (straight / "train.jsonl").open()]
  assert sum("held_out_loss" in row for row in rows) == 1
  assert [path.name for path in (straight / "sheets").iterdir()] == [f"{STEPS:08d}.png"]


def test_an_identity_is_known_without_reading_the_parameters(root):
  source = experiment(root).inputs.autoencoder
  described = describe_autoencoder(source)
  loaded = open_autoencoder(source, mesh=mesh_of(8))
  assert described.identity == loaded.identity
  latents = loaded.encode(np.zeros((8, 9, 16, 16, 3), np.float32))
  assert described.latent_shape(frames=9, height=16, width=16) == latents.shape[1:]


def test_a_field_that_stages_get_later_changes_no_identity(root, tmp_path, monkeypatch):
  """A stage that was stored without it is the one that it was; one stored now has its digest."""
  source = experiment(root).inputs.autoencoder
  whole = autoencoder()
  assert describe_autoencoder(source).identity["stage"] == digest(whole.stage)
  fields = {name: value for name, value in whole.stage.fields.items() if name != "remat"}
  older = dataclasses.replace(whole, stage=dataclasses.replace(whole.stage, fields=fields))
  monkeypatch.setattr("latent_run.autoencoder", lambda: older)
  untrained_autoencoder(tmp_path)
  shutil.copy(root / "tae" / STATISTICS, tmp_path)
  source = dataclasses.replace(source, workdir=str(tmp_path))
  assert describe_autoencoder(source).identity["stage"] == digest(older.stage)


def test_the_autoencoder_itself_is_not_opened_for_training(root, tmp_path, monkeypatch):
  monkeypatch.setattr("vidgen.train.encoded.open_autoencoder", None)
  data = opened(experiment(root, latents="latents"), root, tmp_path)
  assert data.decode is None and data.names == {"latents", "text", "text_mask", "fps"}
  data.close()


def test_sheets_need_a_run_that_decodes(root, tmp_path):
  one = experiment(root, latents="latents", watch=1)
  source = dataclasses.replace(one.inputs.autoencoder, workdir="")
  one = dataclasses.replace(one, inputs=dataclasses.replace(one.inputs, autoencoder=source))
  with pytest.raises(ConfigError, match=r"train\.sheet_every: .* names no run to decode them"):
    run(one, root, tmp_path)


def test_the_size_is_said_before_and_a_finished_cache_is_left_alone(root, capsys, monkeypatch):
  said = json.loads((root / "said.json").read_text())
  files = sorted((root / "data" / "latents").rglob("*.arrays"))
  assert said["bad"] == 1 and said["buckets"]["video"]["samples"] == 24 + 64
  there = sum(path.stat().st_size for path in files)
  assert abs(there - said["bytes"]) < 512  # of the damaged clip it says why it has none
  monkeypatch.setattr("vidgen.train.autoencoder.open_autoencoder", None)
  before = [path.stat().st_mtime_ns for path in files]
  assert cache(root) == 0
  assert "0.0 MiB to write" in capsys.readouterr().out
  assert [path.stat().st_mtime_ns for path in files] == before
  out = root / "elsewhere"
  assert cache(root, "--out", str(out), "--dry-run") == 0 and not out.exists()
  assert cache(root, "--out", str(out), "--config.inputs.temporal_crop=random") == 2
  assert "temporal_crop: cached latents are of one crop" in capsys.readouterr().err
  assert cache(root, "--config.inputs.temporal_crop=start") == DataError.exit_code


def test_latents_of_an_autoencoder_that_changed_are_refused(root, tmp_path):
  other = tmp_path / "tae"
  untrained_autoencoder(other, seed=1)
  shutil.copy(root / "t2v.py", tmp_path)
  measure(root / "data", other, tmp_path / "t2v.py")
  one = experiment(root, latents="latents")
  source = dataclasses.replace(one.inputs.autoencoder, workdir=str(other))
  changed = dataclasses.replace(one, inputs=dataclasses.replace(one.inputs, autoencoder=source))
  with pytest.raises(DataError, match=r"latents/video/train: .* autoencoder\.params: .* -> "):
    opened(changed, root, tmp_path)
  assert cache(root, "--autoencoder", str(other)) == DataError.exit_code

"""An autoencoder's run behind a stage on latents: measured, bound to its parameters, decoding."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from latent_run import build_data, measure, t2v, train_autoencoder, write_config

from vidgen.cli import main
from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.config import AutoencoderSource
from vidgen.systems import make_stage
from vidgen.train.autoencoder import (
  STATISTICS,
  measure_statistics,
  open_autoencoder,
  training_clips,
)
from vidgen.train.encoded import open_data
from vidgen.train.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """A short run of the autoencoder."""
  return train_autoencoder(data, tmp_path_factory.mktemp("tae"))


@pytest.fixture(scope="module")
def measured(data, run, tmp_path_factory):
  """The same, its latents measured by the command."""
  config = write_config(tmp_path_factory.mktemp("config") / "t2v.py", t2v())
  measure(data, run, config)
  return run


def mesh():
  return make_mesh(MeshConfig(data=1, fsdp=-1))


def opened(run, **fields):
  return open_autoencoder(AutoencoderSource(workdir=str(run), **fields), mesh=mesh())


def test_latents_that_were_not_measured_are_refused(run, tmp_path):
  (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
  with pytest.raises(ConfigError, match="vidgen data latents"):
    opened(tmp_path)


def test_what_was_measured_is_of_these_parameters_and_this_way_of_encoding(measured, tmp_path):
  (tmp_path / "checkpoints").symlink_to(measured / "checkpoints")
  found = json.loads((measured / STATISTICS).read_bytes())
  ((key, entry),) = found.items()
  assert key.endswith("/clip")
  for wrong in ("0" * 64 + "/clip", key.replace("/clip", "/each")):
    (tmp_path / STATISTICS).write_text(json.dumps({wrong: entry}))
    with pytest.raises(ConfigError, match="measure its latents"):
      opened(tmp_path)
  for damaged in ("{", "[]", json.dumps({key: {**entry, "std": entry["std"][:3]}})):
    (tmp_path / STATISTICS).write_text(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
      opened(tmp_path)


def test_measuring_again_takes_nothing_from_the_stages_there_are(measured, tmp_path):
  """It is refused unless asked for; of frames each by itself it stands beside the other."""
  (tmp_path / "checkpoints").symlink_to(measured / "checkpoints")
  before = (measured / STATISTICS).read_text()
  (tmp_path / STATISTICS).write_text(before)
  video = np.random.default_rng(0).uniform(-1, 1, (8, 9, 16, 16, 3)).astype(np.float32)
  source = AutoencoderSource(workdir=str(tmp_path))
  with pytest.raises(ConfigError, match="measured before"):
    measure_statistics(source, [video], mesh=mesh())
  assert (tmp_path / STATISTICS).read_text() == before
  measure_statistics(dataclasses.replace(source, frames="each"), [video], mesh=mesh())
  assert opened(tmp_path).identity == opened(measured).identity
  assert opened(tmp_path, frames="each").statistics.clips == 8
  measure_statistics(source, [video], mesh=mesh(), replace=True)
  assert opened(tmp_path).identity != opened(measured).identity


def test_no_clip_is_measured_twice(data):
  """Of 24 clips two batches of 10 are whole, however many are asked for."""
  clips = list(training_clips(t2v().inputs, str(data), batch_size=10, count=1000))
  of_video = [batch for batch in clips if batch.shape[1] == 9]
  assert [len(batch) for batch in of_video] == [10, 10]
  assert len({clip.tobytes() for batch in of_video for clip in batch}) == 20


def test_measured_latents_have_mean_0_and_deviation_1(measured, data):
  loaded = opened(measured, dtype="float32")
  clips = training_clips(t2v().inputs, str(data), batch_size=8, count=16)
  z = np.concatenate([np.asarray(loaded.encode(video)).reshape(-1, 4) for video in clips])
  np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(z.std(0), 1, atol=1e-4)


def test_pieces_are_the_whole_and_an_image_is_one_frame(measured):
  loaded = opened(measured)
  video = np.random.default_rng(0).uniform(-1, 1, (8, 9, 16, 16, 3)).astype(np.float32)
  latents = np.asarray(loaded.encode(video))
  assert latents.shape == (8, 2, 2, 2, 4)
  whole = np.asarray(loaded.decode(latents, frames=9))
  pieces = np.concatenate(list(loaded.stream(latents, frames=9)), axis=1)
  np.testing.assert_allclose(pieces, whole, atol=1e-5)
  assert loaded.decode(latents[:, :1], frames=1).shape == (8, 1, 16, 16, 3)
  first = whole[:, :1]  # of a clip that moves, and not the image of its first latents
  np.testing.assert_allclose(loaded.decode(latents, frames=1), first, atol=1e-6)
  np.testing.assert_allclose(next(loaded.stream(latents, frames=1)), first, atol=1e-5)
  with pytest.raises(ConfigError, match="at most 16 frames"):
    loaded.decode(latents, frames=17)


def test_frames_each_are_so_many_images(measured, tmp_path):
  (tmp_path / "checkpoints").symlink_to(measured / "checkpoints")
  video = np.random.default_rng(0).uniform(-1, 1, (8, 3, 16, 16, 3)).astype(np.float32)
  source = AutoencoderSource(workdir=str(tmp_path), frames="each", dtype="float32")
  measure_statistics(source, [video], mesh=mesh())
  loaded = open_autoencoder(source, mesh=mesh())
  latents = loaded.encode(video)
  assert latents.shape == (8, 3, 2, 2, 4)
  np.testing.assert_allclose(latents[:, 1:2], loaded.encode(video[:, 1:2]), atol=1e-5)
  made = loaded.decode(latents, frames=3)
  np.testing.assert_allclose(made[:, 1:2], loaded.decode(latents[:, 1:2], frames=1), atol=1e-5)
  pieces = np.concatenate(list(loaded.stream(latents, frames=3)), axis=1)
  np.testing.assert_allclose(pieces, made, atol=1e-5)


def test_a_stage_on_latents_trains_resumes_and_remembers_whose_they_are(measured, data, tmp_path):
  one: Any = t2v(measured)
  stage = make_stage(one.stage.name, one.stage.fields)
  for steps in (1, 2):
    now = dataclasses.replace(one, train=dataclasses.replace(one.train, steps=steps))
    opened_data = open_data(now, str(data), workdir=tmp_path, mesh=make_mesh(now.mesh))
    assert opened_data.names >= {"latents", "text"} and "video" not in opened_data.names
    state = train(now, stage=stage, workdir=tmp_path, data=opened_data)
  assert int(state.step) == 2
  from vidgen.train.trained import load_trained

  trained = load_trained(tmp_path)
  assert trained.autoencoder == json.loads(json.dumps(opened(measured).identity))
  assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), trained.params))
  sample_and_decode(tmp_path, measured)


def sample_and_decode(workdir, autoencoder):
  """Sampled at once, or to latents and decoded later, the videos are the same bytes."""
  prompts = workdir / "prompts.txt"
  prompts.write_text("a red circle moving left on black\na blue square standing still on white\n")
  common = ["--workdir", str(workdir), "--prompts", str(prompts), "--frames", "12"]
  whole, parts, out = (workdir / name for name in ("whole", "parts", "decoded"))
  assert main(["sample", *common, "--out", str(whole)]) == 0
  record = json.loads((whole / "samples.jsonl").read_text().splitlines()[0])
  assert (record["frames"], record["height"]) == (12, 16)
  assert main(["sample", *common, "--out", str(parts), "--latents-only"]) == 0
  assert not list(parts.glob("*.mp4"))
  command = ["decode", "--latents", str(parts), "--autoencoder", str(autoencoder)]
  assert main([*command, "--out", str(out)]) == 0
  found = sorted(path.name for path in out.glob("*.mp4"))
  assert found == ["00000.mp4", "00001.mp4"]
  for name in found:
    assert (out / name).read_bytes() == (whole / name).read_bytes()
  refuse_other_latents(parts, command, out)


def refuse_other_latents(folder, command, out):
  """Changed latents, notes of another autoencoder, and files that are none; nothing is written."""
  again = [*command, "--out", str(out / "again")]
  note = folder / "latents" / "00001.json"
  kept = note.read_text()
  for change, code in (({"sha256": "0" * 64}, 3), ({"autoencoder": {"dtype": "float32"}}, 3)):
    note.write_text(json.dumps({**json.loads(kept), **change}))
    assert main(again) == code
  note.write_text("{")
  assert main(again) == 3
  note.write_text(kept)
  for path in (folder / "latents").glob("*.json"):
    tree = json.loads(path.read_text())
    tree["autoencoder"] = {**tree["autoencoder"], "params": "another"}
    path.write_text(json.dumps(tree))
  assert main(again) == 4
  assert main([*again, "--fps", "8"]) == 2
  single = folder / "latents" / "00000.npy"
  alone = ["decode", "--autoencoder", command[-1], "--out", str(out / "alone"), "--latents"]
  assert main([*alone, str(single), "--fps", "8", "--frames", "9"]) == 0
  assert main([*alone, str(single), "--frames", "17"]) == 2
  (folder / "bad.npy").write_bytes(single.read_bytes()[:200])
  assert main([*alone, str(folder / "bad.npy")]) == 3
  assert main([*alone, str(folder / "absent")]) == 2
  assert not (out / "again").exists() and len(list((out / "alone").glob("*.mp4"))) == 1

"""`vidgen upsample`: a folder of samples in, a folder of larger ones out, nothing lost between."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trained_run
from ml_collections import ConfigDict

from vidgen.cli import main
from vidgen.config import plain
from vidgen.evals.samples import read_samples
from vidgen.inputs.storage import file_sha256
from vidgen.systems import make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import resolve

FIELDS = {
  **trained_run.FIELDS,
  "patch": (1, 8, 8),
  "max_grid": (4, 4, 4),
  "buckets": [{"name": "video", "frames": 4, "height": 28, "width": 28}],  # 28: no multiple of 8
  "overlap": 1,
  "prediction": "data",
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
  """Three samples of 8 frames of 16 x 16."""
  folder = tmp_path_factory.mktemp("base")
  trained_run.write_run(folder / "run")
  (folder / "prompts.txt").write_text("a red circle\nblue\na green square\n")
  arguments = ["sample", "--workdir", folder / "run", "--prompts", folder / "prompts.txt"]
  assert main([*map(str, arguments), "--out", str(folder / "samples"), "--seed", "3"]) == 0
  return folder / "samples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An upsampler of pixels."""
  return write_upsampler(tmp_path_factory.mktemp("upsampler"), FIELDS)


def write_upsampler(folder, fields):
  """A run with small random numbers for parameters, none of them zero."""
  stage = make_stage("movie_gen/upsampler", fields)
  shapes = jax.eval_shape(stage.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes)
  experiment = resolve(
    ConfigDict(
      {
        "name": "up",
        "stage": {"name": "movie_gen/upsampler", "fields": fields},
        "inputs": {
          "buckets": [{**fields["buckets"][0], "fps": 4.0}],
          "text_length": 32,
        },
        "train": {"batch_size": 8},
        "sample": {"steps": 2, "guidance_scale": 2.0, "schedule": "linear"},
      }
    )
  )
  state = {"params": params, "ema": params, "opt_state": {}, "step": jnp.int32(2)}
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(2, state, {"position": 2}, plain(experiment))
  checkpoints.close()
  return folder


def upsample(run, samples, out, *more):
  arguments = ["upsample", "--workdir", run, "--samples", samples, "--out", out, *more]
  return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def larger(run, samples, tmp_path_factory):
  out = tmp_path_factory.mktemp("larger")
  assert upsample(run, samples, out, "--json", out / "summary.json") == 0
  return out


def latents(folder, index=0):
  return np.load(folder / "latents" / f"{index:05d}.npy")


def test_a_folder_of_samples_comes_out_larger(run, samples, larger):
  """Every sample keeps its index, prompt, key, rate and length, and says which file it was made
  from; the folder is one that `vidgen eval` reads, and holds its sources' records."""
  before, after = read_samples(samples).records, read_samples(larger).records
  for old, new in zip(before, after, strict=True):
    for name in ("index", "prompt", "key", "seed", "fps", "frames"):
      assert getattr(new, name) == getattr(old, name)
    assert (new.height, new.width) == (28, 28) and new.source == old.sha256 and not old.source
    assert new.params_digest != old.params_digest and new.settings.steps == 2
    assert latents(larger, new.index).shape == (8, 28, 28, 3)
    assert new.latents_sha256 == file_sha256(larger / "latents" / f"{new.index:05d}.npy")
  assert (larger / "sources.jsonl").read_bytes() == (samples / "samples.jsonl").read_bytes()
  summary = json.loads((larger / "summary.json").read_text())
  assert (summary["count"], summary["reused"], summary["seed"]) == (3, 0, 3)
  for video in read_samples(larger).videos():
    assert video.frames is not None and video.frames.shape == (8, 28, 28, 3)


def test_what_was_made_is_not_made_again(run, samples, larger, capsys):
  """Started again, with one latent array damaged, it makes that one and gives the same bytes."""
  records = (larger / "samples.jsonl").read_bytes()
  path = larger / "latents" / "00001.npy"
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  assert upsample(run, samples, larger) == 0
  assert "2 had their latents already" in capsys.readouterr().out
  assert path.read_bytes() == whole and (larger / "samples.jsonl").read_bytes() == records


def test_a_sample_depends_on_its_video_seed_and_index_alone(run, samples, larger, tmp_path):
  """In another batch it is the same, with another seed another; another size is made if asked."""
  assert upsample(run, samples, tmp_path / "batch", "--batch-size", "3") == 0
  for index in range(3):
    np.testing.assert_allclose(
      latents(tmp_path / "batch", index), latents(larger, index), atol=2e-5
    )
  options = ("--seed", "4", "--height", "24", "--width", "32", "--steps", "1")
  assert upsample(run, samples, tmp_path / "other", *options) == 0
  assert latents(tmp_path / "other").shape == (8, 24, 32, 3)
  assert upsample(run, samples, tmp_path / "seed", "--seed", "4") == 0
  assert np.abs(latents(tmp_path / "seed") - latents(larger)).max() > 1e-3


def sample_and_upsample(samples, out, upsampler, *more):
  prompts = samples.parent / "prompts.txt"
  arguments = ["sample", "--workdir", samples.parent / "run", "--prompts", prompts, "--out", out]
  return main([str(a) for a in [*arguments, "--seed", "3", "--upsampler", upsampler, *more]])


def test_sampling_goes_on_to_upsample(run, samples, larger, tmp_path, capsys):
  """One command leaves what the two leave, and goes on where it was stopped between them."""
  out = tmp_path / "out"
  summary = out / "summary.json"
  assert sample_and_upsample(samples, out, f"{run}@2", "--json", summary) == 0
  assert (out / "samples.jsonl").read_bytes() == (samples / "samples.jsonl").read_bytes()
  both = out / "upsampled"
  for name in ("samples.jsonl", "sources.jsonl", "00001.mp4", "latents/00002.npy"):
    assert (both / name).read_bytes() == (larger / name).read_bytes()
  first = json.loads(summary.read_text())
  assert (first["reused"], first["upsampled"]["reused"]) == (0, 0)
  for gone in (out / "samples.jsonl", both / "samples.jsonl", both / "latents/00001.npy"):
    gone.unlink()
  assert sample_and_upsample(samples, out, run, "--json", summary) == 0
  again = json.loads(summary.read_text())
  assert (again["reused"], again["upsampled"]["reused"]) == (3, 2)
  assert (both / "samples.jsonl").read_bytes() == (larger / "samples.jsonl").read_bytes()
  assert read_samples(out).digest() == read_samples(samples).digest()


def test_an_upsampler_that_is_none_is_refused_before_anything_is_sampled(
  run, samples, tmp_path, capsys
):
  out = tmp_path / "out"
  assert sample_and_upsample(samples, out, samples.parent / "run") == 2
  assert "movie_gen/t2v is not an upsampler" in capsys.readouterr().err
  assert sample_and_upsample(samples, out, f"{run}@7") == 4
  assert "7" in capsys.readouterr().err
  assert sample_and_upsample(samples, out, tmp_path) == 4
  assert sample_and_upsample(samples, out, run, "--latents-only") == 2
  assert "--latents-only" in capsys.readouterr().err
  assert not out.exists()


def test_an_upsamplers_autoencoder_is_looked_for_before_anything_is_sampled(
  samples, tmp_path, capsys
):
  bucket = {"name": "video", "frames": 4, "height": 32, "width": 32}
  fields = {name: value for name, value in FIELDS.items() if name != "latent"}
  fields |= {"patch": (1, 2, 2), "max_grid": (4, 2, 2), "buckets": [bucket]}
  latent = write_upsampler(tmp_path / "latent", fields)
  assert sample_and_upsample(samples, tmp_path / "out", latent) == 2
  assert "this stage makes latents" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_what_cannot_be_upsampled_is_refused(run, samples, tmp_path, capsys):
  """A folder without records, changed videos, a run that is no upsampler, a size too large."""
  assert upsample(run, tmp_path, tmp_path / "out") == 3
  assert upsample(samples.parent / "run", samples, tmp_path / "out") == 2
  assert "movie_gen/t2v is not an upsampler" in capsys.readouterr().err
  assert upsample(run, samples, tmp_path / "out", "--height", "40") == 2
  assert "exceeds max_grid" in capsys.readouterr().err
  assert upsample(run, samples, samples) == 2
  assert upsample(run, samples, tmp_path / "out", "--autoencoder", tmp_path) == 2
  video = samples / "00001.mp4"
  whole = video.read_bytes()
  try:
    video.write_bytes(whole[:-1] + b"x")
    assert upsample(run, samples, tmp_path / "out") == 3
    assert "00001.mp4" in capsys.readouterr().err
  finally:
    video.write_bytes(whole)

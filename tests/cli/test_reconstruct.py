"""`vidgen reconstruct`: two folders that hold what an autoencoder was given and what it made."""

import io
import itertools
import json
import re
import shutil
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trained_run
from ml_collections import ConfigDict

from vidgen.cli import main
from vidgen.config import plain
from vidgen.evals import reconstruction
from vidgen.evals.samples import read_samples
from vidgen.inputs.pipeline import make_dataset
from vidgen.media.video import to_uint8
from vidgen.systems import SampleSettings, make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.data import STILL
from vidgen.train.experiment import resolve

ROOT = Path(__file__).resolve().parents[2]
CLIP = {"name": "video", "frames": 12, "height": 32, "width": 32}
IMAGE = {"name": "image", "frames": 1, "height": 32, "width": 32}
FIELDS = {
  "channels": (8, 8), "blocks": 1, "latent_channels": 4, "groups": 4, "buckets": [CLIP, IMAGE],
  "perceptual_weight": 0.0, "discriminator": None, "gan_weight": 0.0, "dtype": "float32",
  "remat": "none",
}  # fmt: skip
EXPERIMENT = resolve(
  ConfigDict(
    {
      "name": "tae",
      "stage": {"name": "movie_gen/tae", "fields": FIELDS},
      "inputs": {"buckets": [{**CLIP, "fps": 8.0}, {**IMAGE, "subset": "image"}]},
      "train": {"batch_size": 8},
    }
  )
)
STAGE = make_stage("movie_gen/tae", FIELDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "shapes_world"
  arguments = ["--out", str(folder), "--count", "16", "--workers", "1", "--seed", "5"]
  assert not main(["data", "build", str(ROOT / "data/shapes_world.py:single"), *arguments])
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An autoencoder with random numbers for parameters; "ema" is not "params"."""
  workdir = tmp_path_factory.mktemp("tae")
  made = jax.jit(STAGE.init)(jax.random.key(0))
  ema = jax.tree.map(lambda x: 1.1 * x + 0.01, made)
  state = {"params": made, "ema": ema, "opt_state": {}, "step": jnp.int32(3)}
  checkpoints = Checkpoints(workdir / "checkpoints")
  checkpoints.save(3, state, {"position": 3}, plain(EXPERIMENT))
  checkpoints.close()
  return workdir, ema


def reconstruct(workdir, data, out, *more):
  arguments = ["reconstruct", "--workdir", workdir, "--data", data, "--out", out, *more]
  return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def made(run, data, tmp_path_factory):
  out = tmp_path_factory.mktemp("made")
  assert reconstruct(run[0], data, out, "--count", "8", "--json", out / "summary.json") == 0
  return out


def videos(folder):
  return [video.frames for video in read_samples(folder).videos()]


def held_out(data, bucket):
  dataset = make_dataset(
    EXPERIMENT.inputs.__class__(**{**vars(EXPERIMENT.inputs), **STILL}),
    str(data), batch_size=1, seed=0, split="held_out", bucket=bucket, repeat=False,
  )  # fmt: skip
  return [batch["video"] for batch in itertools.islice(dataset, 8)]


@pytest.mark.parametrize("bucket", ["video", "image"])
def test_the_folders_hold_what_the_network_was_given_and_made(run, data, made, bucket):
  """Originals are the pipeline's held-out clips, bit for bit, in its order; reconstructions are
  what the EMA parameters make of them through the posterior's mean; each names its original."""
  originals, results = made / bucket / "originals", made / bucket / "reconstructions"
  given = held_out(data, bucket)
  assert len(given) == 8
  for video, frames in zip(given, videos(originals), strict=True):
    np.testing.assert_array_equal(to_uint8(video[0]), frames)
  settings, rng = SampleSettings(), jax.random.split(jax.random.key(0), 1)
  sample = jax.jit(lambda p, x: STAGE.sample(p, {"video": x}, rng, settings)["video"])
  for video, frames in zip(given, videos(results), strict=True):
    expected = to_uint8(np.asarray(sample(run[1], video))[0])
    assert np.abs(expected.astype(int) - frames.astype(int)).max() <= 1
  pairs = zip(read_samples(originals).records, read_samples(results).records, strict=True)
  for real, fake in pairs:
    assert fake.source == real.sha256 and fake.key == real.key and fake.prompt == real.prompt
    assert (real.weights, fake.weights, fake.step) == ("none", "ema", 3)


def test_what_is_printed_is_what_eval_finds(made, tmp_path, capsys):
  """PSNR of the summary is that of `vidgen eval`, and SSIM takes the same folders."""
  summary = json.loads((made / "summary.json").read_text())["buckets"]
  for bucket, found in summary.items():
    folder = made / bucket
    arguments = ["eval", "--samples", folder / "reconstructions", "--allow-small"]
    arguments += ["--reference", folder / "originals", "--json", tmp_path / "scores.json"]
    assert main([str(a) for a in [*arguments, "--metrics", "psnr,ssim"]]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert found["psnr"] == pytest.approx(scores["psnr"]["values"]["psnr"], rel=1e-9)
    assert 3 < found["psnr"] < 40 and scores["ssim"]["protocol"]["missing"] == 0
  assert {b["fps"] for b in summary.values()} == {8.0} and summary["video"]["left_out"] == []


def test_the_probe_reads_the_originals_right(made, tmp_path):
  """Held against the facts that lie beside the folders; of the reconstructions it is not sure."""
  folder, path = made / "video", tmp_path / "probe.json"
  shares = []
  for name in ("originals", "reconstructions"):
    arguments = ["eval", "--samples", folder / name, "--reference", folder / "prompts.jsonl"]
    assert main([str(a) for a in [*arguments, "--metrics", "shapes_probe", "--json", path]]) == 0
    shares.append(json.loads(path.read_text())["accuracy"]["all"])
  assert shares[0] == 1.0 > shares[1]


def test_a_long_clip_goes_through_in_pieces(run, data, made, tmp_path, monkeypatch):
  """Streamed, a clip comes out as it does whole, to the rounding of bytes."""
  monkeypatch.setattr(reconstruction, "WHOLE", 0)
  pieces = []
  stream = reconstruction.stream_decode
  monkeypatch.setattr(
    reconstruction, "stream_decode",
    lambda *a, **k: (pieces.append(p.shape[1]) or p for p in stream(*a, **k)),
  )  # fmt: skip
  assert reconstruct(run[0], data, tmp_path, "--bucket", "video", "--count", "2") == 0
  for part, whole in zip(
    videos(tmp_path / "video" / "reconstructions"),
    videos(made / "video" / "reconstructions"),
    strict=False,
  ):
    assert np.abs(part.astype(int) - whole.astype(int)).max() <= 1
  assert sum(pieces) == 2 * 12 and max(pieces) < 12


def test_seed_count_and_shape(run, data, made, tmp_path):
  """A seed draws other clips, the same ones each time, of the size asked for."""
  shape = ("--frames", "5", "--height", "16", "--width", "24", "--fps", "4")
  keys = []
  for name in ("a", "b"):
    out = tmp_path / name
    assert reconstruct(run[0], data, out, "--seed", "1", "--count", "3", *shape) == 0
    assert sorted(p.name for p in out.iterdir()) == ["video"]
    records = read_samples(out / "video" / "reconstructions").records
    assert {(r.frames, r.height, r.width, r.fps) for r in records} == {(5, 16, 24, 4.0)}
    keys.append([r.key for r in records])
  first = [r.key for r in read_samples(made / "video" / "originals").records]
  assert keys[0] == keys[1] != first[:3]


def test_a_damaged_sample_is_named_and_left_out(run, data, made, tmp_path, capsys):
  spoilt = shutil.copytree(data, tmp_path / "data")
  shard = next(spoilt.glob("**/video/held_out/*.tar"), None) or next(
    p for p in spoilt.rglob("*.tar") if "held_out" in str(p) and "video" in str(p)
  )
  with tarfile.open(shard) as archive:
    members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]
  first = next(m.name for m, _ in members if m.name.endswith(".mp4"))
  with tarfile.open(shard, "w") as archive:
    for member, content in members:
      content = content[: len(content) // 2] if member.name == first else content
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  out = tmp_path / "out"
  assert reconstruct(run[0], spoilt, out, "--bucket", "video", "--count", "2") == 0
  key = first.removesuffix(".mp4")
  assert re.search(rf"left out: shard .*key '{key}'", capsys.readouterr().err)
  whole = [r.key for r in read_samples(made / "video" / "originals").records]
  assert whole[0] == key
  assert [r.key for r in read_samples(out / "video" / "originals").records] == whole[1:3]


def test_refusals_are_one_line(run, data, tmp_path, capsys):
  """Of what is no autoencoder, no bucket, no size it can take, no data: each says which."""
  other = trained_run.write_run(tmp_path / "run")
  for workdir, more, code, words in (
    (other, (), 2, "movie_gen/t2v is no autoencoder"),
    (run[0], ("--bucket", "x"), 2, "--bucket 'x': the run's config has video, image"),
    (run[0], ("--height", "17"), 2, "17 x 32 pixels: the autoencoder takes multiples of 2"),
    (run[0], ("--frames", "0"), 2, "at least 1"),
    (run[0], ("--count", "0"), 2, "--count must be at least 1"),
    (run[0], ("--split", "none"), 3, "has no split 'none'"),
    (run[0], ("--frames", "999", "--bucket", "video"), 3, "none of"),
    (run[0], ("--step", "7"), 4, "7"),
  ):
    assert reconstruct(workdir, data, tmp_path / "out", *more) == code
    assert words in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / "out" / "video" / "reconstructions" / "samples.jsonl").exists()

"""Samples of any shape, rate, schedule and wording, through the command line."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained_run import changed, experiment, stage, write_run

from vidgen.cli import main
from vidgen.cli.sample import prefixer
from vidgen.config import plain
from vidgen.errors import ConfigError
from vidgen.evals import generation
from vidgen.evals.samples import read_samples
from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.sampling import sample, sampled, sampling_flops
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.trained import Trained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text('a sign "GO"\na red circle\na sign "GO"\n')
  return path


def sample_with(workdir, prompts, out, *more):
  return main(
    ["sample", "--workdir", str(workdir), "--prompts", str(prompts), "--out", str(out), *more]
  )


def test_a_sample_has_the_shape_and_the_rate_that_are_asked_for(workdir, prompts, tmp_path):
  options = (
    "--frames", "4", "--height", "8", "--width", "12", "--fps", "6", "--schedule", "linear",
    "--steps", "2", "--guidance", "1",
  )  # fmt: skip
  assert sample_with(workdir, prompts, tmp_path / "out", *options) == 0
  found = read_samples(tmp_path / "out")
  for record, video in zip(found.records, found.videos(), strict=True):  # checks sizes and rate
    assert video.frames is not None and video.frames.shape == (4, 8, 12, 3) and record.fps == 6
    assert (record.settings.frames, record.settings.width) == (4, 12)
    assert (record.settings.schedule, record.settings.steps) == ("linear", 2)
  assert np.load(tmp_path / "out/latents/00000.npy").shape == (4, 8, 12, 3)
  note = json.loads((tmp_path / "out/latents/00000.json").read_text())
  assert note["origin"]["fps"] == 6 and note["origin"]["settings"]["height"] == 8
  # What was made for another rate is not taken for this one.
  options = [*options[:6], "--fps", "3", *options[8:], "--json", str(tmp_path / "j")]
  assert sample_with(workdir, prompts, tmp_path / "out", *options) == 0
  assert json.loads((tmp_path / "j").read_text())["reused"] == 0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--frames", "6"], r"samples of 6 x 16 x 16 .* does not divide into patches"),
    (["--height", "20"], r"samples of 8 x 20 x 16 .*grid \(2, 5, 4\) exceeds max_grid"),
    (["--width", "0"], "width must be at least 1"),
    (["--fps", "0"], "--fps must be positive"),
    (["--fps", "nan"], "--fps must be positive"),
    (["--steps", "9"], "linear_steps 6 is less than steps 9"),
    (["--rewriter", "http://example.com/"], "on this machine"),
    (["--rewrites", "nowhere.jsonl"], "no such file"),
  ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
  workdir, prompts, tmp_path, capsys, arguments, message
):
  assert sample_with(workdir, prompts, tmp_path / "out", *arguments) == 2
  error = capsys.readouterr().err
  assert re.search(message, error) and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_the_model_reads_the_rewrite_and_the_record_has_both(workdir, prompts, tmp_path):
  file = tmp_path / "r.jsonl"
  lines = [
    {"prompt": 'a sign "GO"', "rewrite": 'A tall "GO" sign.'},
    {"prompt": "a red circle", "rewrite": "One red circle."},
  ]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  options = ("--steps", "1", "--guidance", "1", "--schedule", "linear")
  assert sample_with(workdir, prompts, tmp_path / "out", "--rewrites", str(file), *options) == 0
  records = read_samples(tmp_path / "out").records
  assert [r.prompt for r in records] == ['a sign "GO"', "a red circle", 'a sign "GO"']
  assert [r.rewrite for r in records] == [lines[i]["rewrite"] for i in (0, 1, 0)]
  assert [r.text for r in records] == [r.rewrite for r in records]
  # The same latents as those of the rewrites given as prompts, and as those of the kept rewrites.
  said = tmp_path / "said.txt"
  said.write_text("".join(f"{record.rewrite}\n" for record in records))
  assert sample_with(workdir, said, tmp_path / "said", *options) == 0
  kept = str(tmp_path / "out" / "rewrites.jsonl")
  assert sample_with(workdir, prompts, tmp_path / "kept", "--rewrites", kept, *options) == 0
  for other in ("said", "kept"):
    hashes = [r.latents_sha256 for r in read_samples(tmp_path / other).records]
    assert hashes == [r.latents_sha256 for r in records]
  assert [r.rewrite for r in read_samples(tmp_path / "said").records] == [None] * 3
  file.write_text(json.dumps(lines[0]) + "\n")
  assert sample_with(workdir, prompts, tmp_path / "e", "--rewrites", str(file), *options) == 3
  more = ("--rewrite-failure", "prompt", *options)
  assert sample_with(workdir, prompts, tmp_path / "p", "--rewrites", str(file), *more) == 0
  assert [r.rewrite for r in read_samples(tmp_path / "p").records][1] == "a red circle"


def evaluations(scale):
  """How many rows the network sees in a step of one sample, by the matrix products of a trace."""
  settings = SampleSettings(steps=2, guidance_scale=scale, schedule="linear")
  abstract = jax.eval_shape(stage().init, jax.random.key(0))
  inputs = {
    "text": jnp.zeros((1, 32), jnp.int32), "text_mask": jnp.ones((1, 32), bool),
    "fps": jnp.ones(1),
  }  # fmt: skip
  jaxpr = jax.make_jaxpr(
    lambda p, x: sample(p, x, np.uint32(0), jnp.zeros(1, jnp.uint32), stage=stage(),
                        settings=settings)["latents"]
  )(abstract, inputs)  # fmt: skip
  rows = []

  def walk(found):
    for equation in found.eqns:
      if equation.primitive.name == "dot_general":
        shape = equation.outvars[0].aval.shape
        if shape[1:] == (32, 32):  # tokens x width: the residual stream of 2 x 4 x 4 patches
          rows.append(shape[0])
      for value in equation.params.values():
        for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
          if hasattr(inner, "jaxpr"):
            walk(inner.jaxpr)
          elif hasattr(inner, "eqns"):
            walk(inner)

  walk(jaxpr.jaxpr)
  assert rows
  return set(rows)


def test_without_guidance_the_null_pass_is_not_run():
  assert evaluations(1.0) == evaluations(0.0) == {1}
  assert evaluations(3.0) == {2}
  costs = {
    scale: sampling_flops(stage(), SampleSettings(guidance_scale=scale), batch_size=1)
    for scale in (0.0, 1.0, 2.0)
  }
  assert costs[2.0] == 2 * costs[1.0] == 2 * costs[0.0]


def test_flops_are_those_of_the_shape_that_is_sampled():
  small = SampleSettings(frames=4, height=8, width=8)
  other = make_stage(
    "movie_gen/t2v",
    {**experiment().stage.fields,
     "buckets": [{"name": "video", "frames": 4, "height": 8, "width": 8}]},
  )  # fmt: skip
  assert sampled(stage(), small)["latents"].shape == (1, 4, 8, 8, 3)
  assert sampling_flops(stage(), small, batch_size=2) == sampling_flops(
    other, SampleSettings(), batch_size=2
  )


class Pooling:
  """An autoencoder of sorts: each value of the latents is a block of 2 x 4 x 4 pixels."""

  def __init__(self, scale=0.1):
    self.scale, self.calls = scale, []
    self.identity = {"params": f"digest of {scale}"}

  def _video(self, latents):
    video = np.asarray(latents)[..., :3].repeat(2, 1).repeat(4, 2).repeat(4, 3)
    return np.clip(self.scale * video, -1, 1)

  def decode(self, latents, *, frames):
    self.calls.append("decode")
    return self._video(latents)[:, :frames]

  def stream(self, latents, *, frames):
    self.calls.append("stream")
    for start in range(0, frames, 2):
      yield self._video(latents[:, start // 2 : start // 2 + 1])[:, : frames - start]


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory):
  """A run whose stage makes latents of 4 channels, 2 x 4 x 4 pixels to each."""
  one = changed(
    latent={"channels": 4, "temporal_stride": 2, "spatial_stride": 4}, patch=(1, 2, 2),
    max_grid=(4, 4, 4),
  )  # fmt: skip
  made = make_stage("movie_gen/t2v", one.stage.fields)
  weights = jax.device_get(jax.jit(made.init)(jax.random.key(0)))
  folder = tmp_path_factory.mktemp("latents")
  checkpoints = Checkpoints(folder / "checkpoints")
  position = {"iterator": {}, "description": {"autoencoder": Pooling().identity}}
  checkpoints.save(3, {"ema": weights, "step": 3}, position, plain(one))
  checkpoints.close()
  return folder


def test_latents_are_kept_with_their_autoencoder_and_decoded_in_pieces(
  latent_run, prompts, tmp_path, monkeypatch
):
  used = []

  def load(self, run=""):
    used.append((run, Pooling()))
    return used[-1][1]

  monkeypatch.setattr(Trained, "load_autoencoder", load)
  options = ("--frames", "7", "--steps", "1", "--schedule", "linear")
  assert sample_with(latent_run, prompts, tmp_path / "out", "--latents-only", *options) == 0
  assert not used and not (tmp_path / "out" / "samples.jsonl").exists()
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["latents"]
  note = json.loads((tmp_path / "out/latents/00001.json").read_text())
  assert note["autoencoder"] == Pooling().identity and note["frames"] == 7
  latents = np.load(tmp_path / "out/latents/00001.npy")
  assert latents.shape == (4, 4, 4, 4)  # 7 frames: the last of 8 is cut
  told = tmp_path / "told.json"
  more = ("--autoencoder", "runs/tae", "--json", str(told))
  assert sample_with(latent_run, prompts, tmp_path / "out", *options, *more) == 0
  assert json.loads(told.read_text())["reused"] == 3
  assert [(run, one.calls) for run, one in used] == [("runs/tae", ["decode"])]
  videos = read_samples(tmp_path / "out").videos()
  assert [v.frames is not None and v.frames.shape for v in videos] == [(7, 16, 16, 3)] * 3
  whole = (tmp_path / "out" / "00001.mp4").read_bytes()
  monkeypatch.setattr(generation, "WHOLE", 1)  # a clip too large to hold: the same file, in pieces
  assert sample_with(latent_run, prompts, tmp_path / "out", *options) == 0
  assert used[-1][1].calls == ["stream"] * 3
  assert (tmp_path / "out" / "00001.mp4").read_bytes() == whole


def test_a_stage_of_latents_says_what_it_needs(latent_run, prompts, tmp_path, capsys):
  assert sample_with(latent_run, prompts, tmp_path / "out") == 2
  assert "--autoencoder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_large_frames_are_reduced_for_the_preview_alone(tmp_path):
  from vidgen.evals.sample_files import write_video

  video = np.zeros((2, 16, 516, 3), np.uint8)
  video[:, :, 258:] = 255
  made = write_video(tmp_path, 0, iter((video[:1], video[1:])), fps=4.0)
  assert (made.frames, made.height, made.width) == (2, 16, 516)
  assert made.preview.shape == (2, 5, 172, 3)
  assert made.preview[0, 0, 85].max() == 0 and made.preview[0, 0, 86].min() == 255


def test_the_prefix_of_the_runs_captions_goes_before_the_prompt():
  captioned = types.SimpleNamespace(prefix=("fps", "camera"))
  prefix = prefixer(captioned, fps=16.0, frames=8, camera="zoom in")
  assert prefix('a sign "GO"') == 'FPS-16 zoom in. a sign "GO"'
  image = prefixer(captioned, fps=16.0, frames=1, camera="zoom in")
  assert image("a sign") == "zoom in. a sign"  # as in training, where an image has no rate
  assert prefixer(types.SimpleNamespace(prefix=()), fps=16.0, frames=8)("a sign") == "a sign"
  with pytest.raises(ConfigError, match="no camera motion"):
    prefixer(types.SimpleNamespace(prefix=("fps",)), fps=16.0, frames=8, camera="zoom in")

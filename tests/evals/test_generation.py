"""From prompts to a folder of samples: latents first, nothing twice, nothing outside the folder."""

import io
import json
import pickle
import re

import jax
import numpy as np
import pytest
from trained_run import experiment, params, stage

from vidgen.errors import ConfigError, NonFiniteError
from vidgen.evals.generation import generate, text_inputs
from vidgen.evals.samples import SampleOrigin, read_samples
from vidgen.inputs.decode import decode_video
from vidgen.inputs.prompts import Prompt
from vidgen.inputs.storage import file_sha256
from vidgen.inputs.text import ByteTokenizer
from vidgen.systems.sampling import Sampler

HOSTILE = ["../../escape", "/etc/passwd", "nul\0nul", "line\nfeed", "x" * 400, "", "a/b\\c:*?"]


class Killed(Exception):
  pass


def sampler(*, weights=None, batch_size=2, seed=0):
  return Sampler(
    stage(), params=params() if weights is None else weights, settings=experiment().sample,
    seed=seed, batch_size=batch_size,
  )  # fmt: skip


@pytest.fixture(scope="module")
def shared():
  """One sampler for the module: its program is compiled once."""
  return sampler()


def run(directory, texts, *, use, progress=lambda done, total: None, step=5, keys=True):
  prompts = [Prompt(t, f"key{i}" if keys else None) for i, t in enumerate(texts)]
  origins = [
    SampleOrigin(
      index=i, prompt=text, seed=int(use.seed), step=step, weights="ema",
      config_digest="c" * 64, params_digest="p" * 64, settings=experiment().sample, fps=4.0,
    )
    for i, text in enumerate(texts)
  ]  # fmt: skip
  return generate(
    directory, prompts=prompts, origins=origins, stage=stage(), sampler=use,
    tokenizer=ByteTokenizer(), progress=progress,
  )  # fmt: skip


def contents(directory):
  """Every file's SHA-256."""
  return {
    path.relative_to(directory).as_posix(): file_sha256(path)
    for path in directory.rglob("*")
    if path.is_file()
  }


def test_everything_is_written_and_readable(tmp_path, shared):
  made = run(tmp_path, ["red", "blue", "green"], use=shared)
  names = set(contents(tmp_path))
  assert names == {"sheet.png", "samples.jsonl"} | {
    name
    for i in range(3)
    for name in (f"{i:05}.mp4", f"{i:05}.gif", f"latents/{i:05}.npy", f"latents/{i:05}.json")
  }
  assert read_samples(tmp_path).records == made.records
  for record in made.records:
    latents = np.load(tmp_path / "latents" / f"{record.index:05}.npy", allow_pickle=False)
    assert latents.dtype == np.float32 and latents.shape == (8, 16, 16, 3)
    clip = decode_video((tmp_path / record.file).read_bytes())
    # In brightness, as colour is stored at half the resolution and these samples are noise.
    seen, made_of = (x @ [0.2126, 0.7152, 0.0722] for x in (clip.frames, np.clip(latents, -1, 1)))
    assert np.corrcoef(seen.ravel(), made_of.ravel())[0, 1] > 0.95
    assert clip.duration == pytest.approx(2.0)


def test_a_run_that_was_killed_resumes_and_ends_as_the_unbroken_one(tmp_path, shared):
  texts = [f"prompt {i}" for i in range(5)]
  run(tmp_path / "whole", texts, use=shared)

  def kill(done, total):
    if done == 2:
      raise Killed

  with pytest.raises(Killed):
    run(tmp_path / "broken", texts, use=shared, progress=kill)
  assert not (tmp_path / "broken" / "samples.jsonl").exists()
  assert run(tmp_path / "broken", texts, use=shared).reused == 2
  assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_latents_are_on_disk_before_they_are_decoded(tmp_path):
  class CannotDecode(Sampler):
    def decode(self, latents):
      raise Killed

  use = CannotDecode(stage(), params=params(), settings=experiment().sample, seed=0, batch_size=2)
  with pytest.raises(Killed):
    run(tmp_path, ["a", "b", "c"], use=use)
  assert set(contents(tmp_path)) == {
    f"latents/0000{i}.{s}" for i in (0, 1) for s in ("npy", "json")
  }


@pytest.mark.parametrize("damage", ["flip", "cut", "pickle", "note", "prompt", "step"])
def test_latents_that_are_damaged_or_of_another_origin_are_made_again(tmp_path, shared, damage):
  texts = ["one", "two", "three"]
  run(tmp_path, texts, use=shared)
  good = contents(tmp_path)
  path = tmp_path / "latents" / "00001.npy"
  whole, step = path.read_bytes(), 5
  if damage == "flip":
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
  elif damage == "cut":
    path.write_bytes(whole[:-100])
  elif damage == "pickle":
    file = io.BytesIO()
    np.save(file, np.array([Exploding()], object), allow_pickle=True)
    path.write_bytes(file.getvalue())
  elif damage == "note":
    path.with_suffix(".json").write_text("{")
  elif damage == "prompt":
    texts = ["one", "deux", "three"]
  else:
    step = 6
  made = run(tmp_path, texts, use=shared, step=step)
  assert made.reused == (0 if damage == "step" else 2)
  if damage not in ("prompt", "step"):
    assert contents(tmp_path) == good
  assert made.records == read_samples(tmp_path).records


class Exploding:
  def __reduce__(self):
    return pytest.fail, ("unpickled",)


def test_the_pickle_of_that_test_does_explode():
  with pytest.raises(pytest.fail.Exception):
    pickle.loads(pickle.dumps(Exploding()))  # noqa: S301  (what the code must never do)


def test_hostile_prompts_name_nothing(tmp_path, shared):
  out = tmp_path / "deep" / "out"
  made = run(out, HOSTILE, use=shared)
  assert [r.prompt for r in made.records] == HOSTILE
  assert [r.cut for r in made.records] == [len(t.encode()) > 31 for t in HOSTILE]
  assert made.cut == 1
  everything = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
  pattern = r"deep/out/((latents/)?\d{5}\.(npy|json|mp4|gif)|sheet\.png|samples\.jsonl)"
  assert all(re.fullmatch(pattern, name) for name in everything)
  lines = (out / "samples.jsonl").read_text().split("\n")
  assert [json.loads(line)["prompt"] for line in lines[:-1]] == HOSTILE


def test_prompts_of_too_many_words_are_cut_though_their_bytes_fit(tmp_path, shared):
  words = "a b c d e f g h i".split()  # the model reads 8 words, 32 bytes with the end
  made = run(tmp_path, [" ".join(words), " ".join(words[:8]), "x" * 31, "x" * 32], use=shared)
  assert [r.cut for r in made.records] == [True, False, False, True]
  assert made.cut == 2
  assert read_samples(tmp_path).records == made.records


def test_a_model_that_is_not_finite_is_refused_by_sample(tmp_path):
  bad = jax.tree.map(np.array, params())
  bad["network"]["patch_in"]["bias"][0] = np.nan
  with pytest.raises(NonFiniteError, match="sample 0"):
    run(tmp_path, ["a"], use=sampler(weights=bad, batch_size=1))
  assert contents(tmp_path) == {}


def test_stages_that_read_embeddings_are_refused_by_name(tmp_path):
  from vidgen.systems import make_stage

  big = make_stage("movie_gen/t2v", {})
  with pytest.raises(ConfigError, match="byt5, byt5_mask, metaclip"):
    text_inputs(big, ["a"], tokenizer=ByteTokenizer(), fps=8.0)

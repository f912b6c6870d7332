"""Chains of stages: what each is given, in which order, and that nothing is made twice."""

import contextlib
import dataclasses
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade_run import BASE, SSR, TSR, CascadeConfig, CascadeStage

from vidgen.errors import ConfigError, NonFiniteError
from vidgen.evals import cascade as chains
from vidgen.evals import sample_files
from vidgen.evals.cascade import Link, Network, cascade, check_chain
from vidgen.evals.samples import SampleOrigin, read_samples
from vidgen.inputs.prompts import Prompt
from vidgen.inputs.storage import file_sha256
from vidgen.inputs.text import ByteTokenizer, tokenize
from vidgen.systems import SampleSettings
from vidgen.systems.sampling import Sampler, sample_keys

SHAPES = {"base": (BASE, None), "tsr": (TSR, BASE), "ssr": (SSR, TSR)}
FPS = {"base": 3.0, "tsr": 6.0, "ssr": 6.0}
SETTINGS = SampleSettings(steps=3)
TEXTS = [f"prompt {i}" for i in range(5)]
PROMPTS = [Prompt(text, f"key{i}") for i, text in enumerate(TEXTS)]


class Killed(Exception):
  pass


def params_of(stage, seed=1):
  return stage.init(jax.random.key(seed))


class Chain:
  """Links of the fake stages, and a note of what is loaded and drawn."""

  def __init__(self, *, batch_sizes=(2, 3, 1), seed=7, texts=TEXTS, params=params_of, **changes):
    self.loaded, self.alive, self.most_alive = [], weakref.WeakSet(), 0
    self.drawn = []  # (name, sample numbers)
    self.links = []
    for number, name in enumerate(SHAPES):
      shape, low = changes.get(name, SHAPES[name])
      stage = CascadeStage(CascadeConfig(shape, low))
      origins = [
        SampleOrigin(
          index=i, prompt=text, seed=seed, step=5, weights="ema", config_digest=name * 4,
          params_digest="p" * 64, settings=SETTINGS, fps=changes.get(f"{name}_fps", FPS[name]),
        )
        for i, text in enumerate(texts)
      ]  # fmt: skip

      def load(name=name, stage=stage, batch_size=batch_sizes[number]):
        self.loaded.append(name)
        chain = self

        class Noted(Sampler):
          def latents(self, inputs, index):
            chain.drawn.append((name, index.tolist()))
            return super().latents(inputs, index)

        sampler = Noted(
          stage, params=params(stage), settings=SETTINGS, seed=seed, batch_size=batch_size
        )
        network = Network(
          sampler=sampler, tokenizer=ByteTokenizer(), encoders={}, context=contextlib.nullcontext
        )
        gc.collect()
        self.alive.add(sampler)
        self.most_alive = max(self.most_alive, len(self.alive))
        return network

      self.links.append(Link(name=name, stage=stage, origins=origins, encoders=(), load=load))

  def run(self, out, *, prompts=PROMPTS, **options):
    check_chain(self.links)
    return cascade(out, self.links, prompts=prompts, **options)


def contents(directory):
  """Every file's SHA-256."""
  return {
    path.relative_to(directory).as_posix(): file_sha256(path)
    for path in directory.rglob("*")
    if path.is_file()
  }


def latents(folder, index):
  return np.load(folder / "latents" / f"{index:05d}.npy", allow_pickle=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  out = tmp_path_factory.mktemp("whole")
  Chain().run(out)
  return out


def test_each_stage_is_given_the_pixels_that_the_one_before_it_made(whole):
  """Exactly, clipped to [-1, 1]; the record says what it was."""
  before = None
  for number, name in enumerate(SHAPES):
    folder = whole / f"{number}_{name}"
    shape, low = SHAPES[name]
    stage = CascadeStage(CascadeConfig(shape, low))
    params, draw = params_of(stage), jax.jit(stage.sample, static_argnums=3)
    for record in read_samples(folder).records:
      found = latents(folder, record.index)
      assert found.shape == (*shape, 3) and record.seed == 7
      assert (record.frames, record.height, record.width) == shape
      inputs = tokenize(ByteTokenizer(), [record.prompt], length=24)
      if before is not None:
        assert record.source == file_sha256(before / "latents" / f"{record.index:05d}.npy")
        clip = latents(before, record.index)
        assert np.abs(clip).max() > 1  # so that clipping has a say
        inputs["low"] = np.clip(clip, -1, 1)[None]
      else:
        assert record.source == ""
      keys = sample_keys(np.uint32(record.seed), jnp.array([record.index], jnp.uint32))
      made = draw(params, inputs, keys, SETTINGS)["latents"]
      np.testing.assert_allclose(found, made[0], atol=1e-6)
    before = folder


def test_videos_are_those_of_the_latents_whatever_their_sides(whole):
  """Also clips of 3 x 5, which no player shows, are read back, and exactly."""
  for folder in (whole / "0_base", whole / "1_tsr"):
    for video in read_samples(folder).videos():
      made = np.clip(latents(folder, video.record.index), -1, 1)
      np.testing.assert_array_equal(video.frames, np.rint(made * 127.5 + 127.5).astype(np.uint8))
  assert all(video.frames.shape == (*SSR, 3) for video in read_samples(whole / "2_ssr").videos())
  names = set(contents(whole / "0_base"))
  assert names == {"sheet.png", "samples.jsonl"} | {
    name
    for i in range(5)
    for name in (f"{i:05}.mp4", f"{i:05}.gif", f"latents/{i:05}.npy", f"latents/{i:05}.json")
  }


def test_both_orders_give_the_same_bytes(whole, tmp_path):
  chain = Chain()
  chain.run(tmp_path, order="stages")
  assert contents(tmp_path) == contents(whole)
  names = [name for name, _ in chain.drawn]
  assert names == ["base"] * 3 + ["tsr"] * 2 + ["ssr"] * 5


def test_stage_by_stage_holds_one_network_and_by_batches_all(tmp_path):
  one, all_of_them = Chain(), Chain()
  one.run(tmp_path / "one", order="stages")
  all_of_them.run(tmp_path / "all")
  assert (one.most_alive, all_of_them.most_alive) == (1, 3)


def test_a_batch_goes_through_all_stages_before_the_next_begins(tmp_path):
  chain = Chain(batch_sizes=(1, 1, 1))
  chain.run(tmp_path)
  assert chain.drawn == [(name, [i]) for i in range(5) for name in SHAPES]


def test_noise_is_of_seed_sample_and_stage_alone(whole, tmp_path):
  """Other batches and fewer prompts change nothing but last bits."""
  Chain(batch_sizes=(1, 5, 2), texts=TEXTS[:3]).run(tmp_path / "few", prompts=PROMPTS[:3])
  for folder in ("0_base", "1_tsr", "2_ssr"):
    for i in range(3):
      np.testing.assert_allclose(
        latents(tmp_path / "few" / folder, i), latents(whole / folder, i), atol=1e-5
      )
  Chain(seed=8).run(tmp_path / "seed")
  assert np.abs(latents(tmp_path / "seed/0_base", 0) - latents(whole / "0_base", 0)).max() > 0.1


@pytest.mark.parametrize("order", ["batches", "stages"])
@pytest.mark.parametrize("after", [1, 14, 26, 42])
def test_a_cascade_that_was_killed_resumes_where_it_was(whole, tmp_path, monkeypatch, order, after):
  """Killed after so many of its 45 writes, it ends as the unbroken one. No latents are written
  twice, and of the videos at most the one that it was killed at."""
  written = {"write_latents": 0, "write_mp4": 0, "keep_record": 0}
  left = [after]

  def counted(name, real):
    def call(*arguments, **options):
      if not left[0]:
        raise Killed
      left[0] -= 1
      written[name] += 1
      return real(*arguments, **options)

    return call

  for name in written:
    monkeypatch.setattr(sample_files, name, counted(name, getattr(sample_files, name)))
  with pytest.raises(Killed):
    Chain().run(tmp_path, order=order)
  assert not (tmp_path / "2_ssr" / "samples.jsonl").exists()
  left[0], made_before = -1, written["write_latents"]
  made = Chain().run(tmp_path, order=order)
  assert sum(each.reused for each in made) == made_before
  assert (written["write_latents"], written["keep_record"]) == (15, 15)
  assert written["write_mp4"] in (15, 16)
  assert contents(tmp_path) == contents(whole)


def test_seconds_are_of_batches_after_the_first(tmp_path):
  made = Chain(batch_sizes=(5, 3, 1)).run(tmp_path)
  assert made[0].seconds_per_clip is None
  assert made[1].seconds_per_clip > 0 and made[2].seconds_per_clip > 0


def test_what_is_complete_is_not_loaded_again(whole, tmp_path):
  Chain().run(tmp_path)
  again = Chain()
  assert [each.reused for each in again.run(tmp_path)] == [5, 5, 5]
  assert again.loaded == [] and contents(tmp_path) == contents(whole)
  (tmp_path / "1_tsr" / "latents" / "00003.npy").unlink()
  # Damage: the same sample comes out again, and so what was made from it stays.
  assert [each.reused for each in again.run(tmp_path)] == [5, 4, 5]
  assert [name for name, _ in again.drawn] == ["tsr"] and contents(tmp_path) == contents(whole)


def test_what_was_made_from_another_clip_is_made_again(tmp_path):
  Chain().run(tmp_path)
  before = contents(tmp_path)
  other = Chain(texts=[*TEXTS[:4], "another"])
  prompts = [*PROMPTS[:4], Prompt("another", "key4")]
  assert [each.reused for each in other.run(tmp_path, prompts=prompts)] == [4, 4, 4]
  changed = {name for name, digest in contents(tmp_path).items() if before[name] != digest}
  assert {name.split("/")[0] for name in changed} == {"0_base", "1_tsr", "2_ssr"}
  assert all("00004" in name or name.endswith(("sheet.png", "samples.jsonl")) for name in changed)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"ssr": (SSR, BASE)}, "tsr makes clips of 32 x 3 x 5, ssr wants 16 x 3 x 5"),
    ({"tsr_fps": 8.0}, "base makes 16 frames at 3 fps, tsr 32 at 8"),
    ({"base": (BASE, (8, 3, 5))}, "base: .*cannot be the first"),
    ({"tsr": (TSR, None)}, "tsr: .*can only be the first"),
  ],
)
def test_chains_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    check_chain(Chain(**changes).links)


def test_stages_that_need_more_or_make_latents_are_refused():
  links = Chain().links

  class Latents(CascadeStage):
    def sample(self, *arguments):
      return {"latents": super().sample(*arguments)["latents"]}

  class Reads(CascadeStage):
    def input_spec(self, batch_size):
      spec = super().input_spec(batch_size)
      return {**spec, "t5": spec["text"]}

  for wrong, message in ((Latents, "tsr: makes latents"), (Reads, "tsr: .*samples from t5")):
    stage = wrong(links[1].stage.config)
    with pytest.raises(ConfigError, match=message):
      check_chain([links[0], dataclasses.replace(links[1], stage=stage), links[2]])


def test_a_stage_whose_values_are_not_finite_is_named_and_the_rest_stays(tmp_path):
  def params(stage):
    good = params_of(stage)
    return good if stage.config.shape != TSR else jax.tree.map(lambda x: x * np.nan, good)

  with pytest.raises(NonFiniteError, match="tsr: sample 0"):
    Chain(params=params).run(tmp_path)
  assert sorted(path.name for path in tmp_path.rglob("*.npy")) == [f"{i:05d}.npy" for i in range(4)]


def test_what_cannot_be_loaded_leaves_what_is_there(whole, tmp_path):
  """A stage that is not there any more, in either order, costs no record of an earlier cascade."""
  Chain().run(tmp_path)

  def gone():
    raise ConfigError("gone")

  for order in ("batches", "stages"):
    other = Chain(seed=8)
    other.links[0] = dataclasses.replace(other.links[0], load=gone)
    with pytest.raises(ConfigError, match="gone"):
      other.run(tmp_path, order=order)
  assert contents(tmp_path) == contents(whole)


def test_long_clips_are_written_in_pieces(monkeypatch):
  monkeypatch.setattr(chains, "PIECE", 4 * 5 * 3 * 3 * 7)  # seven frames of 3 x 5
  clip = np.random.default_rng(0).normal(size=(16, 3, 5, 3)).astype(np.float32)
  pieces = list(chains.pixels(clip))
  assert [len(piece) for piece in pieces] == [7, 7, 2]
  np.testing.assert_array_equal(np.concatenate(pieces), np.clip(clip, -1, 1))


def test_a_stage_alone_says_that_it_is_of_a_cascade(tmp_path):
  from vidgen.evals.generation import check_inputs

  stage = Chain().links[1].stage
  with pytest.raises(ConfigError, match=re.escape("`vidgen cascade`")):
    check_inputs(stage)
  check_inputs(stage, given=("low",))

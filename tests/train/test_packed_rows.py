"""Packed rows on the way to the devices: one program for both kinds, texts encoded in slots."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_run import experiment
from fake_stage import FakeConfig, FakeStage

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from shards import image_set, video_set  # noqa: E402 (found by the line above)

from vidgen.dist.mesh import make_mesh, on_mesh  # noqa: E402 (likewise)
from vidgen.dist.rules import batch_shardings  # noqa: E402 (likewise)
from vidgen.inputs.config import EncoderSource  # noqa: E402 (likewise)
from vidgen.inputs.encoders import TextEncoder  # noqa: E402 (likewise)
from vidgen.inputs.text import ByteTokenizer  # noqa: E402 (likewise)
from vidgen.systems.stage import ArraySpec  # noqa: E402 (likewise)
from vidgen.train.data import ShardData  # noqa: E402 (likewise)
from vidgen.train.encoded import EncodedData  # noqa: E402 (likewise)
from vidgen.train.programs import Programs  # noqa: E402 (likewise)

FRAMES, BATCH = 3, 8
CLIPS, PACKS = "video", "pack"


class PackedStage(FakeStage):
  """Eats packed rows, of the bytes of the first caption; `width` is that of embeddings beside."""

  def __init__(self, *, width: int = 0):
    super().__init__(FakeConfig())
    self.width = width

  @property
  def buckets(self):
    return CLIPS, PACKS

  def predict(self, params, inputs):
    return super().predict(params, {n: inputs[n][:, 0] for n in ("text", "text_mask")})

  def batch_spec(self, batch_size, bucket="video"):
    spec = super().batch_spec(batch_size)
    _, *size = spec["video"].shape[1:]
    video = dataclasses.replace(spec["video"], shape=(batch_size, FRAMES, *size))
    text = (batch_size, FRAMES, self.config.text_length)
    axes = ("batch", None, None, None)
    spec |= {
      "video": video,
      "segments": ArraySpec((batch_size, FRAMES), jnp.int32, axes[:2]),
      "text": ArraySpec(text, jnp.int32, axes[:3]),
      "text_mask": ArraySpec(text, jnp.bool_, axes[:3]),
    }
    if self.width:
      spec["t5"] = ArraySpec((*text, self.width), jnp.float32, axes)
      spec["t5_mask"] = spec["text_mask"]
    return spec


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  for split in ("train", "held_out"):
    video_set(root, shards=1, per_shard=4, frames=4, size=(8, 8), split=split)
    image_set(root, count=6, split=split, size=(8, 8))
  return root


def packed(**fields):
  one = experiment(buckets=(CLIPS, PACKS), batch_size=BATCH)
  clips, packs = one.inputs.buckets
  buckets = (
    dataclasses.replace(clips, images=1, captions=FRAMES),
    dataclasses.replace(packs, subset="image", images=FRAMES - 1),
  )
  length = FakeConfig().text_length
  inputs = dataclasses.replace(one.inputs, buckets=buckets, text_length=length, **fields)
  return dataclasses.replace(one, inputs=inputs)


def open_shards(one, root, workdir, kind=ShardData):
  return kind(one.inputs, str(root), batch_size=BATCH, seed=0, workdir=workdir)


def is_pack(batch):
  """Whether each frame is an image of its own."""
  return bool(np.asarray(batch["segments"])[0].tolist() == list(range(FRAMES)))


def test_clips_with_images_and_packs_share_one_step(shards, tmp_path):
  """Batches of both buckets are taken for the first of them, as their shapes are the same."""
  one = packed()
  mesh = make_mesh(one.mesh)
  data = open_shards(one, shards, tmp_path)
  with on_mesh(mesh, rules=one.rules):
    programs = Programs(one, stage=PackedStage(), mesh=mesh)
    step, state, seen = programs.train(CLIPS), programs.init(), []
    for _ in range(4):
      batch = next(data)
      bucket, arrays = programs.put(batch)
      state, metrics = step(state, arrays)
      seen.append((is_pack(batch), bucket))
      assert np.isfinite(float(metrics["loss"]))
  data.close()
  assert sorted(set(seen)) == [(False, CLIPS), (True, CLIPS)]


def test_held_out_rows_are_packed_of_held_out_images_in_their_order(shards, tmp_path):
  data = open_shards(packed(caption_dropout=0.5), shards, tmp_path)
  clips, packs = data.held_out(2)
  examples = data.examples(2)
  data.close()
  assert [is_pack(clips), is_pack(packs)] == [False, True]
  texts = [
    [ByteTokenizer().decode(ids) for row in batch["text"].tolist() for ids in row]
    for batch in (clips, packs)
  ]
  assert texts[0][:6] == ["clip 0", "image 0", "", "clip 1", "image 1", ""]
  assert texts[1][:6] == ["image 0", "image 0", "image 1", "image 1", "image 2", "image 3"]
  assert examples is not None
  np.testing.assert_array_equal(examples["text"], clips["text"][:2])


def encoder(mesh, rules):
  """An embedding of bytes, of which nothing is left where the mask is False."""
  table = jax.random.normal(jax.random.key(0), (259, 4))
  return TextEncoder(
    "t5", EncoderSource(length=FakeConfig().text_length, folder="none"),
    apply=lambda params, ids, mask: params[ids], params=table, tokenizer=ByteTokenizer(),
    identity={"width": 4}, mesh=mesh, rules=rules,
  )  # fmt: skip


class WithIds(ShardData):
  """Its texts are a stream of ids, too."""

  def __next__(self):
    return with_ids(super().__next__())

  def examples(self, count):
    return with_ids(super().examples(count))


def with_ids(batch):
  return {**batch, "t5": batch["text"], "t5_mask": batch["text_mask"]}


def test_captions_of_packed_rows_are_encoded_each_for_itself(shards, tmp_path):
  """And lie on the devices as the step wants them."""
  one = packed()
  mesh = make_mesh(one.mesh)
  within, alone = (open_shards(one, shards, tmp_path, WithIds) for _ in range(2))
  its = encoder(mesh, one.rules)
  data = EncodedData(within, {"t5": its}, batch_size=BATCH)
  stage = PackedStage(width=4)
  with on_mesh(mesh, rules=one.rules):
    programs = Programs(one, stage=stage, mesh=mesh)
    batch, ids = next(data), next(alone)
    _, arrays = programs.put(batch)
    loss = programs.evaluate(programs.init().ema, [batch])["loss"]
  layout = batch_shardings(stage.batch_spec(BATCH), mesh=mesh, rules=one.rules)["t5"]
  assert arrays["t5"].sharding.is_equivalent_to(layout, 4) and np.isfinite(float(loss))
  found = np.asarray(batch["t5"])
  assert found.shape == (BATCH, FRAMES, FakeConfig().text_length, 4)
  for slot in range(FRAMES):
    np.testing.assert_array_equal(found[:, slot], its(ids["t5"][:, slot], ids["t5_mask"][:, slot]))
  assert np.abs(found[:, :2]).max() > 0.1 and not found[~ids["t5_mask"]].any()
  examples = data.examples(2)
  assert examples is not None and examples["t5"].shape == (2, *found.shape[1:])
  for each in (within, alone):
    each.close()

"""Embeddings beside a data set: as large as said, whole, resumable, refused where not of it."""

import dataclasses
import json
import os
import pickle
import shutil
from typing import Any

import numpy as np
import pytest
from batches import ONE, take
from shards import clip_members, image_set, video_set, write_parquet, write_records, write_tar
from text_encoder_folders import write_encoder

from vidgen.cli import main
from vidgen.cli.data.embed import encoder_source
from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.inputs import embed
from vidgen.inputs.array_cache import KEPT_OPEN, about, shard_parts
from vidgen.inputs.array_shards import ArrayShard, ArrayWriter
from vidgen.inputs.config import Bucket, EncoderSource, InputConfig
from vidgen.inputs.embeddings import CachedText, source_bytes, text_of
from vidgen.inputs.encoders import TextEncoder, open_encoder
from vidgen.inputs.pipeline import make_dataset
from vidgen.inputs.text import ByteTokenizer, token_mask

CAPTIONS = [
  "a red circle moves left", "a sign says \u201cHello\u201d", 'the words "one" and "two"', "x",
  "a red circle moves left", "a very long caption " * 12,
]  # fmt: skip
QUOTED = ["", "Hello", "one two", "", "", ""]
LENGTHS = {"t5": 40, "byt5": 12}


def members(number, caption):
  key = f"{number:09d}"
  return [
    (name, caption.encode() if name.endswith(".txt") else data)
    for name, data in clip_members(key, number, frames=8, size=(16, 16))
    if not (name.endswith(".txt") and caption is None)
  ]


def data_set(root, captions=CAPTIONS, *, storage="tar"):
  """Two shards of video/train, the captions split between them, and one of video/held_out."""
  half = len(captions) // 2
  places = {"train/00000": captions[:half], "train/00001": captions[half:], "held_out/00000": ["h"]}
  for place, texts in places.items():
    if storage == "tar":
      write_tar(
        root / "video" / f"{place}.tar", [m for i, c in enumerate(texts) for m in members(i, c)]
      )
      write_parquet(root / "video" / f"{place}.parquet", [f"{i:09d}" for i in range(len(texts))])
    else:
      samples = {
        f"{i:09d}": {n.split(".")[1]: d for n, d in members(i, c)} for i, c in enumerate(texts)
      }
      write_records(root / "video" / f"{place}.array_record", samples)
  return root


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  root = tmp_path_factory.mktemp("encoders")
  for kind in ("t5", "byt5"):
    write_encoder(root / kind, kind)
  return root


def command(root, encoders, *more):
  t5 = f"t5={encoders / 't5'},length={LENGTHS['t5']}"
  byt5 = f"byt5={encoders / 'byt5'},length={LENGTHS['byt5']},reads=quoted"
  return ["data", "embed", str(root), "--encoder", t5, "--encoder", byt5, *more]


@pytest.fixture(scope="module")
def embedded(encoders, tmp_path_factory):
  root = data_set(tmp_path_factory.mktemp("data"))
  assert main(command(root, encoders, "--json", str(root / "said.json"))) == 0
  return root


@pytest.fixture(scope="module")
def loaded(encoders):
  """The encoders, on one device; what they compile is kept for all tests."""
  return {name: open_encoder(name, one) for name, one in config(encoders).encoders.items()}


def write_cache(root, loaded, *, part=(0, 1)):
  """What `vidgen data embed` does, with encoders that are loaded already."""
  sources = {name: encoder.source for name, encoder in loaded.items()}
  streams = embed.describe_streams(sources, out=root / "embeddings")
  work = embed.work_of(root, streams, part=part)
  return embed.embed(work, streams, loaded, batch_size=8)


def config(encoders, *, embeddings="embeddings", **fields):
  sources = {
    "t5": EncoderSource(LENGTHS["t5"], str(encoders / "t5")),
    "byt5": EncoderSource(LENGTHS["byt5"], str(encoders / "byt5"), reads="quoted"),
  }
  return InputConfig(
    buckets=ONE.buckets, text_length=16, caption_dropout=0.0, bad_fraction=1.0, shuffle=False,
    encoders=sources, embeddings=embeddings, **fields,
  )  # fmt: skip


def first(caption, length=15):
  """What is left of a caption that is cut to so many bytes."""
  return caption.strip().encode()[:length].decode("utf-8", "ignore")


def batches(root, one, *, count=1, **options):
  return take(make_dataset(one, str(root), batch_size=6, seed=0, **options), count)


@pytest.mark.parametrize(("caption", "text"), list(zip(CAPTIONS, QUOTED, strict=True)))
def test_what_is_quoted_is_found(caption, text):
  assert text_of(caption, reads="quoted") == text
  assert text_of(caption, reads="caption") == caption


def test_every_embedding_is_the_encoders_cut_to_the_texts_length(embedded, encoders, loaded):
  for name, source in config(encoders).encoders.items():
    encoder = loaded[name]
    direct = encoder.of_captions([c.strip() for c in CAPTIONS], batch_size=8)
    for i, caption in enumerate(CAPTIONS):
      shard = ArrayShard(
        embedded / "embeddings" / name / "video" / "train" / f"{i // 3:05d}.tar.arrays"
      )
      text = text_of(caption.strip(), reads=source.reads)
      array = shard.read(i % 3, source=source_bytes(text)).astype(np.float32)
      mask = direct[f"{name}_mask"][i]
      assert array.shape == (mask.sum(), encoder.width)
      np.testing.assert_allclose(array, direct[name][i][mask], rtol=2**-7, atol=1e-6)


def test_the_size_is_said_before_and_is_the_true_one(embedded, encoders, tmp_path, capsys):
  said = json.loads((embedded / "said.json").read_text())
  files = (embedded / "embeddings").rglob("*.arrays")
  assert said["bytes"] == sum(path.stat().st_size for path in files)
  t5 = said["streams"]["t5"]
  # seven captions: the one that occurs twice does so in two shards
  assert (t5["texts"], t5["cut"], t5["without_caption"]) == (7, 1, 0)
  out = tmp_path / "none"
  assert main(command(embedded, encoders, "--out", str(out), "--dry-run")) == 0
  assert not out.exists() and "to write (dry run)" in capsys.readouterr().out


def test_a_text_that_occurs_twice_in_a_shard_is_stored_once(loaded, tmp_path):
  root = data_set(tmp_path, ["same"] * 6)
  write_cache(root, loaded)
  one = ArrayShard(root / "embeddings" / "t5" / "video" / "train" / "00000.tar.arrays")
  assert len(set(one._index["offset"].tolist())) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("storage", ["tar", "array_record"])
def test_batches_hold_the_embeddings_of_their_captions(
  storage, workers, embedded, encoders, loaded, tmp_path
):
  root = embedded
  if storage == "array_record":
    if workers:
      pytest.skip("workers are the same for both")
    root = data_set(tmp_path, storage=storage)
    write_cache(root, loaded)
  (batch,) = batches(root, config(encoders, workers=workers))
  decode = ByteTokenizer().decode
  assert [decode(row) for row in batch["text"].tolist()] == [first(caption) for caption in CAPTIONS]
  for name in loaded:
    direct = loaded[name].of_captions([c.strip() for c in CAPTIONS], batch_size=8)
    np.testing.assert_array_equal(batch[f"{name}_mask"], direct[f"{name}_mask"])
    np.testing.assert_allclose(batch[name], direct[name], rtol=2**-7, atol=1e-6)


def test_without_a_cache_batches_hold_the_ids(embedded, encoders):
  (batch,) = batches(embedded, config(encoders, embeddings=""))
  assert batch["t5"].shape == (6, 40) and batch["t5"].dtype == np.int32
  rows = [ByteTokenizer().decode(row) for row in batch["byt5"].tolist()]
  assert rows == [text[:11] for text in QUOTED]
  np.testing.assert_array_equal(batch["byt5_mask"], token_mask(batch["byt5"], end=1))


def test_a_stopped_run_goes_on_and_what_is_there_is_kept(loaded, tmp_path, monkeypatch):
  root, straight = data_set(tmp_path / "stopped"), data_set(tmp_path / "straight")
  write_cache(straight, loaded)
  write = embed._write

  def stop(part, *args, **kwargs):
    if part.name.endswith("00001.tar"):
      raise KeyboardInterrupt
    return write(part, *args, **kwargs)

  monkeypatch.setattr(embed, "_write", stop)
  with pytest.raises(KeyboardInterrupt):
    write_cache(root, loaded)
  monkeypatch.undo()
  first = root / "embeddings" / "t5" / "video" / "held_out" / "00000.tar.arrays"
  before = first.stat().st_mtime_ns
  write_cache(root, loaded)
  assert first.stat().st_mtime_ns == before
  for path in sorted((straight / "embeddings").rglob("*.arrays")):
    assert (root / path.relative_to(straight)).read_bytes() == path.read_bytes()


def test_processes_share_the_shards(loaded, tmp_path):
  root = data_set(tmp_path)
  for part, count in (((0, 2), 2), ((1, 2), 3)):
    write_cache(root, loaded, part=part)
    assert len(list((root / "embeddings" / "t5").rglob("*.tar.arrays"))) == count


def test_a_sample_without_a_caption_has_no_embedding_and_is_counted(loaded, tmp_path):
  root = data_set(tmp_path, [*CAPTIONS[:5], " "])
  assert write_cache(root, loaded) == {"t5": 1, "byt5": 1}
  shard = ArrayShard(root / "embeddings" / "t5" / "video" / "train" / "00001.tar.arrays")
  assert [shard.has(i) for i in range(3)] == [True, True, False]


def test_shards_that_were_built_anew_are_refused_until_embedded_again(encoders, loaded, tmp_path):
  root = data_set(tmp_path)
  write_cache(root, loaded)
  data_set(root, ["another caption", *CAPTIONS[1:]])
  with pytest.raises(DataError, match=r"00000\.tar\.arrays: not of this shard as it is now"):
    batches(root, config(encoders))
  write_cache(root, loaded)
  assert batches(root, config(encoders))


def test_a_caption_that_is_not_the_embeddings_stops_the_run(embedded, encoders, tmp_path):
  """Were the digest of a shard ever to miss a change, the text itself would tell."""
  shutil.copytree(embedded, tmp_path / "data")
  train = tmp_path / "data" / "embeddings" / "t5" / "video" / "train"
  shard = ArrayShard(train / "00000.tar.arrays")
  with pytest.raises(DataError, match="made from something else"):
    shard.read(0, source=b"another caption")


def test_damage_is_found_and_named(embedded, encoders, tmp_path):
  shutil.copytree(embedded, tmp_path / "data")
  root = tmp_path / "data"
  path = root / "embeddings" / "t5" / "video" / "train" / "00000.tar.arrays"
  content = bytearray(path.read_bytes())
  content[20] ^= 1  # in a payload
  path.write_bytes(content)
  with pytest.raises(DataError, match=r"00000\.tar\.arrays: sample \d: its bytes have changed"):
    batches(root, config(encoders))
  path.unlink()
  with pytest.raises(DataError, match=r"00000\.tar\.arrays: missing; run `vidgen data embed`"):
    batches(root, config(encoders))
  (root / "embeddings" / "t5" / "identity.json").write_text("{")
  with pytest.raises(DataError, match=r"identity\.json: damaged"):
    batches(root, config(encoders))
  shutil.rmtree(root / "embeddings")
  with pytest.raises(DataError, match="holds no embeddings"):
    batches(root, config(encoders))


def test_another_encoder_does_not_write_into_the_same_folder(embedded, encoders, tmp_path, capsys):
  write_encoder(tmp_path / "other", "t5", seed=1)
  other = ["data", "embed", str(embedded), "--encoder", f"t5={tmp_path / 'other'},length=40"]
  assert main(other) == DataError.exit_code
  assert "embeddings/t5: these embeddings were made otherwise" in capsys.readouterr().err


def test_the_position_says_which_encoder_and_not_where_it_lies(embedded, encoders, tmp_path):
  shutil.copytree(encoders, tmp_path / "moved")
  states = [
    iter(make_dataset(one, str(embedded), batch_size=6, seed=0)).get_state()
    for one in (config(encoders), config(tmp_path / "moved"), config(encoders, embeddings=""))
  ]
  assert states[0] == states[1] == states[2]
  assert states[0]["encoders"]["t5"]["length"] == 40
  assert "encoders" not in iter(make_dataset(ONE, str(embedded), batch_size=6, seed=0)).get_state()


CAMERAS = [{"camera": "pan left"}, {"camera": "arc", "camera_confidence": 0.4}, {}]
PREFIXED = {"prefix": ("fps", "camera")}


def prefixed_config(encoders, **fields):
  """Clips at two rates and images; each caption behind its bucket's rate and the clip's camera."""
  one = config(encoders, **PREFIXED)
  clip = one.buckets[0]
  return dataclasses.replace(
    one, text_length=40, buckets=(
      clip,
      dataclasses.replace(clip, name="fast", fps=2 * clip.fps, frames=2),
      Bucket(name="image", subset="image", frames=1, height=16, width=16),
    ), **fields,
  )  # fmt: skip


@pytest.fixture(scope="module")
def behind(loaded, encoders, tmp_path_factory):
  """A data set of clips and images with camera motions, and its embeddings behind prefixes."""
  root = tmp_path_factory.mktemp("behind")
  members = []
  for i, facts in enumerate(CAMERAS * 2):
    key = f"{i:05d}"
    video, _, _ = clip_members(key, i, frames=16, size=(16, 16))
    text = f'caption {i} of "q{i}"'.encode()
    members += [video, (f"{key}.txt", text), (f"{key}.json", json.dumps(facts).encode())]
  write_tar(root / "video" / "train" / "00000.tar", members)
  image_set(root, count=6)
  write_prefixed(root, loaded, prefixed_config(encoders))
  return root


def write_prefixed(root, loaded, one, *, out="embeddings"):
  sources = {name: encoder.source for name, encoder in loaded.items()}
  prefixes = embed.config_prefixes(one)
  streams = embed.describe_streams(sources, out=root / out, prefixes=prefixes)
  embed.embed(embed.work_of(root, streams), streams, loaded, batch_size=8)
  return streams


def test_embeddings_of_prefixed_captions_are_what_the_encoders_make_of_them(
  behind, encoders, loaded
):
  """Of every bucket, behind its own rate, images without one; as running the encoders gives it."""
  one = prefixed_config(encoders)
  seen = set()
  for bucket in one.buckets:
    options = {"bucket": bucket.name, "repeat": False}
    cached = batches(behind, one, **options)[0]
    live = batches(behind, dataclasses.replace(one, embeddings=""), **options)[0]
    np.testing.assert_array_equal(cached["text"], live["text"])
    texts = [bytes(row[row > 2] - 3).decode() for row in cached["text"].astype(np.uint8)]
    seen |= set(texts)
    for name, encoder in loaded.items():
      mask = live[f"{name}_mask"]
      np.testing.assert_array_equal(cached[f"{name}_mask"], mask)
      direct = encoder.of_captions(texts, batch_size=8)[name]
      np.testing.assert_allclose(cached[name][mask], direct[mask], rtol=2**-7, atol=1e-6)
  assert {'FPS-4 pan left. caption 0 of "q0"', 'FPS-8 caption 1 of "q1"', "image 0"} <= seen
  state = iter(make_dataset(one, str(behind), batch_size=6, seed=0)).get_state()
  again = dataclasses.replace(one, embeddings="")
  assert state == iter(make_dataset(again, str(behind), batch_size=6, seed=0)).get_state()


def test_only_what_is_wanted_is_embedded_and_once(behind, encoders, loaded):
  """Each prefix of its subsets alone, in a folder that names it; and started again, nothing."""
  found = {p.parent.relative_to(behind / "embeddings/t5").as_posix()
           for p in (behind / "embeddings/t5").rglob("*.arrays")}  # fmt: skip
  assert found == {"FPS-4-camera/video/train", "FPS-8-camera/video/train", "camera/image/train"}
  streams = embed.describe_streams(
    {name: encoder.source for name, encoder in loaded.items()},
    out=behind / "embeddings", prefixes=embed.config_prefixes(prefixed_config(encoders)),
  )  # fmt: skip
  assert len(streams) == 6 and embed.work_of(behind, streams) == []


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"prefix": ()}, "t5: holds no embeddings"),
    ({"prefix": ("fps",)}, "t5/FPS-4: holds no embeddings"),
    ({"camera_confidence": 0.3}, r"prefix.confidence: 0.5 -> 0.3"),
    ({"buckets": (dataclasses.replace(ONE.buckets[0], fps=3.0),)}, "FPS-3-camera: holds no"),
  ],
)
def test_embeddings_behind_another_prefix_are_refused(behind, encoders, change, message):
  one = dataclasses.replace(prefixed_config(encoders), **change)
  with pytest.raises(DataError, match=message):
    make_dataset(one, str(behind), batch_size=6, seed=0)


def test_embeddings_in_the_place_of_others_are_refused(behind, encoders, tmp_path):
  """A folder that was renamed to another rate, or to none, says which it is of; and its arrays say
  of which text."""
  root = tmp_path / "copy"
  shutil.copytree(behind, root)
  for name in ("t5", "byt5"):
    folder = root / "embeddings" / name
    (folder / "FPS-4-camera").rename(folder / "FPS-6-camera")
  one = prefixed_config(encoders)
  six = (dataclasses.replace(one.buckets[0], fps=6.0),)
  with pytest.raises(DataError, match="prefix.rate: .*FPS-4 .*FPS-6"):
    make_dataset(dataclasses.replace(one, buckets=six), str(root), batch_size=6, seed=0)
  for path in (root / "embeddings").rglob("FPS-6-camera/identity.json"):
    path.write_text(path.read_text().replace("FPS-4 ", "FPS-6 "))
  with pytest.raises(DataError, match="not of this shard"):
    make_dataset(dataclasses.replace(one, buckets=six), str(root), batch_size=6, seed=0)


def test_clips_of_a_rate_each_have_no_embeddings_behind_it(encoders):
  bucket = dataclasses.replace(ONE.buckets[0], rate="spread")
  one = dataclasses.replace(config(encoders, embeddings=""), buckets=(bucket,), prefix=("fps",))
  with pytest.raises(ConfigError, match=r"config.inputs.prefix: .* bucket 'video'"):
    embed.config_prefixes(one)


def test_a_tokenizer_of_another_encoder_is_found_out(loaded, monkeypatch):
  monkeypatch.setattr(loaded["t5"], "_vocabulary", 5)
  with pytest.raises(CheckpointError, match="token id .* is beyond its 5 embeddings"):
    loaded["t5"].of_captions(["a red circle"])


def test_values_that_are_not_finite_are_refused(encoders, tmp_path):
  root = data_set(tmp_path)
  streams = embed.describe_streams(config(encoders).encoders, out=root / "embeddings")
  stream = streams["t5"]
  broken = TextEncoder(
    "t5", stream.source, apply=lambda params, ids, mask: params + 0 * ids[:, :, None],
    params=np.full(24, np.nan, np.float32), tokenizer=stream.tokenizer, identity=stream.identity,
  )  # fmt: skip
  with pytest.raises(CheckpointError, match="'t5': makes values that are not finite"):
    embed.embed(embed.work_of(root, {"t5": stream}), {"t5": stream}, {"t5": broken})
  assert not list((root / "embeddings").rglob("*.tar.arrays"))


def test_hostile_weights_are_refused_and_nothing_of_them_runs(embedded, encoders, tmp_path, capsys):
  folder, canary = tmp_path / "hostile", tmp_path / "canary"
  shutil.copytree(encoders / "t5", folder)
  (folder / "model.safetensors").unlink()
  code = f"cos\nsystem\n(S'touch {canary}'\ntR."
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x02" + code.encode())
  arguments = ["data", "embed", str(embedded), "--encoder", f"new={folder},length=40"]
  assert main(arguments) == CheckpointError.exit_code
  assert "pytorch_model.bin" in capsys.readouterr().err
  assert not canary.exists() and not (embedded / "embeddings" / "new").exists()


def test_an_encoder_is_spelled_on_the_command_line(encoders):
  text = f"ul2={encoders / 't5'},length=7,dtype=bfloat16,prefix=[S2S] a, b"
  name, source = encoder_source(text)
  assert name == "ul2" and source.prefix == "[S2S] a, b" and source.length == 7
  for wrong in ("t5", "t5=", "=x", f"t5={encoders / 't5'}", f"t5={encoders / 't5'},length=x",
                f"t5={encoders / 't5'},length=\u00b2",
                f"t5={encoders / 't5'},length=7,what=1", "t5=/none,length"):  # fmt: skip
    with pytest.raises(ConfigError, match="--encoder"):
      encoder_source(wrong)


class Shards:
  """A source of which only the names of its shards are asked."""

  shards, problems = [], []

  def __len__(self):
    return 100

  def __getitem__(self, index):
    raise NotImplementedError

  def name(self, index):
    raise NotImplementedError

  def describe(self):
    return [{"shard": f"{i}.tar", "samples": 1, "size": 1, "digest": str(i)} for i in range(100)]


def test_a_cache_of_many_shards_keeps_few_files_open(tmp_path):
  """A process has several streams and sources, and is allowed some 1,024 files."""
  source: Any = Shards()
  identity = {"width": 1}
  for part in shard_parts(source):
    writer = ArrayWriter(part.path(tmp_path), samples=1, dtype="bfloat16", ndim=2)
    writer.add([0], np.full((1, 1), float(part.name[:-4])), source=b"a")
    writer.close(about(part, identity=identity))
  before = len(os.listdir("/proc/self/fd"))
  cache = CachedText(tmp_path, source, reads="caption", identity=identity)
  assert [float(cache(i, "a")[0, 0]) for i in range(100)] == list(range(100))
  assert len(os.listdir("/proc/self/fd")) <= before + KEPT_OPEN
  assert float(pickle.loads(pickle.dumps(cache.shard(7))).read(0, source=b"a")[0, 0]) == 7  # noqa: S301 (our own bytes)


def test_shards_as_other_tools_leave_them_have_embeddings_too(encoders, loaded, tmp_path):
  video_set(tmp_path / "made", shards=2, per_shard=3, frames=8, size=(16, 16))
  shutil.copytree(tmp_path / "made" / "video" / "train", tmp_path / "plain")
  write_cache(tmp_path / "plain", loaded)
  assert (tmp_path / "plain" / "embeddings" / "t5" / "00001.tar.arrays").is_file()
  (batch,) = batches(tmp_path / "plain", config(encoders))
  assert batch["t5"].shape == (6, 40, 24)

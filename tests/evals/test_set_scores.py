"""Scores of pairs, prompts, edits, sounds and votes are right where the answer is known."""

import dataclasses
import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from media_sets import (
  WIDTH,
  clips,
  colour_extractor,
  extractor,
  write_clips,
  write_sequences,
  write_sounds,
)

from vidgen.errors import ConfigError, DataError
from vidgen.evals import scoring
from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors.lpips import PairDistance
from vidgen.evals.folders import open_media
from vidgen.evals.protocol import compare
from vidgen.evals.scoring import Session
from vidgen.evals.settings import Settings

COLOURS = {"red": 0, "green": 1, "blue": 2}
NETWORKS = {"clip": colour_extractor(), "dino": colour_extractor("dino")}


AS_CLIPS = ClipRule(sequence_fps=8.0)


def score(name, samples=None, reference=None, **fields):
  fields = {"extractors": NETWORKS, "allow_small": True, **fields}
  if name in ("psnr", "l1", "ssim", "lpips"):
    fields = {"clip": AS_CLIPS, **fields}
  return Session(Settings(samples=samples, reference=reference, **fields), [name]).score(name)


def plain(colour, *, frames=3, level=200):
  """A clip of one colour."""
  video = np.zeros((frames, 16, 16, 3), np.uint8)
  video[..., COLOURS[colour]] = level
  return video


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
  """Clips of red, green and blue, with captions beside the pictures' folders in a file."""
  root = write_sequences(tmp_path_factory.mktemp("coloured"), [plain(c) for c in COLOURS])
  return root


def prompts(tmp_path, texts, sources=None):
  path = tmp_path / "prompts.jsonl"
  lines = [{"key": f"{i:04}/{t}", "prompt": text,
            "attributes": {"source": (sources or texts)[i]}}
           for i, text in enumerate(texts) for t in range(3)]  # fmt: skip
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


# Pairs


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory):
  root = tmp_path_factory.mktemp("pairs")
  videos = clips(5, frames=4)
  off = np.clip(videos.astype(int) + np.arange(5)[:, None, None, None, None], 0, 255)
  return write_sequences(root / "fake", off.astype(np.uint8)), write_sequences(
    root / "real", videos
  )


def test_psnr_is_of_the_error_in_each_frame(reconstructed):
  found = score("psnr", *reconstructed)
  # Clip i is off by i of 255 everywhere; the first is equal, which counts as 100 dB.
  expected = [100.0, *(20 * math.log10(255 / i) for i in range(1, 5))]
  assert found.values["psnr"] == pytest.approx(np.mean(expected), abs=0.1)
  assert found.protocol.details["pairs"] == 5 and found.protocol.details["equal_frames_db"] == 100
  assert score("l1", *reconstructed).values["l1"] == pytest.approx(2 / 255, rel=0.02)
  assert 0.8 < score("ssim", *reconstructed).values["ssim"] < 1
  by_picture = score("psnr", *reconstructed, clip=ClipRule())
  assert by_picture.values["psnr"] == pytest.approx(found.values["psnr"], abs=1e-9)
  assert by_picture.protocol.details["pairs"] == 20
  gray = score("ssim", *reconstructed, conventions={"ssim": "gray"})
  assert gray.protocol.details["channels"] == "gray"
  same = (reconstructed[1], reconstructed[1])
  assert score("ssim", *same).values["ssim"] == pytest.approx(1, abs=1e-12)


def test_lpips_is_the_mean_over_frames_then_clips(reconstructed):
  def run(params, a, b):
    return jnp.abs(a.astype(jnp.float32) - b).mean(axis=(1, 2, 3))

  distance = PairDistance("lpips_alex", "d", run, {}, {"value_range": [-1.0, 1.0]}, 4)
  found = score("lpips", *reconstructed, extractors={"lpips": distance})
  assert found.values["lpips"] == pytest.approx(2, rel=0.02)
  assert found.protocol.extractor == "lpips_alex"


def test_pairs_without_their_other_half_are_refused_or_counted(reconstructed, tmp_path):
  fake = shutil.copytree(reconstructed[0], tmp_path / "fake")
  shutil.rmtree(fake / "0002")
  extra = write_sequences(tmp_path / "extra", clips(1, frames=4)) / "0000"
  extra.rename(fake / "0009")
  with pytest.raises(DataError, match=r"2 of 2 cannot be scored: .*0009.* no other of its name"):
    score("psnr", fake, reconstructed[1])
  found = score("psnr", fake, reconstructed[1], allow_missing=True)
  assert found.protocol.details["pairs"] == 4 and found.protocol.missing == 2


def test_items_of_one_name_have_neither_pairs_nor_prompts(tmp_path, monkeypatch):
  """As two shards may have: one of them would silently stand for both."""
  folder = write_clips(tmp_path / "clips", clips(2, frames=4))

  def opened(path, **options):
    found = open_media(path, **options)
    return dataclasses.replace(found, items=(*found.items, found.items[0]))

  monkeypatch.setattr(scoring, "open_media", opened)
  (tmp_path / "p.txt").write_text("red\nblue\nred\n")
  for name in ("psnr", "clipsim"):
    with pytest.raises(DataError, match="several items are called '0000'"):
      score(name, folder, folder, prompts=str(tmp_path / "p.txt"))
  networks = {"inception": extractor("inception")}
  assert score("fid", folder, folder, extractors=networks).protocol.count == 3


def test_a_damaged_frame_of_either_side_is_named_with_its_clip(reconstructed, tmp_path):
  for which, label in ((0, "0003"), (1, "0003: its reference 0003")):
    sets = list(reconstructed)
    sets[which] = shutil.copytree(sets[which], tmp_path / f"{which}")
    (sets[which] / "0003" / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"1 of 5 cannot be scored: {label}: 0003/1\.png: not dec"):
      score("psnr", *sets)
    assert score("psnr", *sets, allow_missing=True).protocol.details["pairs"] == 4


def test_pairs_of_other_sizes_or_rates_are_refused(reconstructed, tmp_path):
  large = write_sequences(tmp_path / "large", clips(5, frames=4, size=32))
  with pytest.raises(DataError, match=r"0000: \(4, 32, 32, 3\) frames, height, width, against"):
    score("psnr", large, reconstructed[1])
  a, b = (write_clips(tmp_path / f"{fps}", clips(2), fps=fps) for fps in (4.0, 8.0))
  with pytest.raises(DataError, match=r"0000\.mp4: 4 frames a second, 8 in its pair"):
    score("psnr", a, b)


def test_reconstructions_are_held_against_the_very_same_items(reconstructed):
  networks = {"inception": extractor("inception"), "i3d": extractor()}
  rule = ClipRule("random", frames=3, sequence_fps=8.0)
  same = (reconstructed[1], reconstructed[1])
  assert score("rfvd", *same, extractors=networks, clip=rule).values["rfvd"] < 1e-9
  found = score("rfid", *reconstructed, extractors=networks)
  assert found.values["rfid"] > 0 and found.protocol.details["unpaired"] == 0


# Prompts


def test_clip_scores_are_of_the_prompt_and_the_frames(coloured, tmp_path):
  right = prompts(tmp_path, ["red", "green", "blue"])
  for name, expected in (("clipsim", 1.0), ("clip_score", 100.0)):
    found = score(name, coloured, prompts=right)
    assert found.values[name] == pytest.approx(expected, rel=0.01)
    assert found.protocol.reference and found.protocol.details["n_fake"] == 9
  hessel = score("clip_score", coloured, prompts=right, conventions={"clip_score": "hessel"})
  assert hessel.values["clip_score"] == pytest.approx(2.5, rel=0.01)
  assert hessel.protocol.details["variant"] == "clip_score_hessel"
  wrong = prompts(tmp_path, ["green", "blue", "red"])
  assert score("clipsim", coloured, prompts=wrong).values["clipsim"] < 0.05


def test_captions_may_lie_beside_the_samples_or_come_in_order(tmp_path):
  videos = [plain("red"), plain("blue")]
  folder = write_clips(tmp_path / "clips", videos)
  with pytest.raises(DataError, match=r"no prompt for 0000\.mp4, 0001\.mp4"):
    score("clipsim", folder)
  (tmp_path / "in_order.txt").write_text("red\nblue\n")
  in_order = score("clipsim", folder, prompts=str(tmp_path / "in_order.txt"))
  assert in_order.values["clipsim"] > 0.9
  for name, text in (("0000", "red"), ("0001", "blue")):
    (folder / f"{name}.txt").write_text(text)
  assert score("clipsim", folder).values == in_order.values
  (tmp_path / "three.txt").write_text("red\nblue\nred\n")
  with pytest.raises(DataError, match="3 prompts without keys, for 2 samples"):
    score("clipsim", folder, prompts=str(tmp_path / "three.txt"))
  (tmp_path / "keys.jsonl").write_text('{"prompt": "red", "key": "0000"}\n')
  with pytest.raises(DataError, match=r"none for 0001\.mp4"):
    score("clipsim", folder, prompts=str(tmp_path / "keys.jsonl"))


def test_r_precision_needs_a_hundred_prompts(coloured, tmp_path):
  with pytest.raises(DataError, match="100 different prompts, there are 3"):
    score("r_precision", coloured, prompts=prompts(tmp_path, ["red", "green", "blue"]))
  videos = [plain("red", frames=1), *[plain("green", frames=1)] * 99]
  folder = write_clips(tmp_path / "clips", videos)
  (tmp_path / "p.txt").write_text("red\n" + "".join(f"green {i}\n" for i in range(99)))
  found = score("r_precision", folder, prompts=str(tmp_path / "p.txt"))
  assert found.values["r_precision"] == 0.01  # the green ones tie with each other


def test_consistency_over_time_falls_with_changes(tmp_path):
  still = np.concatenate([plain("red")] * 2)
  jumps = np.concatenate([plain("red"), plain("blue")])
  folder = write_clips(tmp_path / "clips", [still, jumps])
  found = score("tem_con", folder)
  assert found.values["tem_con"] == pytest.approx((1 + 4 / 5) / 2, abs=0.02)
  pictures = write_sequences(tmp_path / "pictures", [still, jumps])
  with pytest.raises(DataError, match="needs two frames"):
    score("tem_con", pictures)
  as_clips = score("tem_con", pictures, clip=AS_CLIPS)
  assert as_clips.values["tem_con"] == pytest.approx(found.values["tem_con"], abs=0.02)


# Edits


def test_scores_of_edits_know_direction_input_and_result(coloured, tmp_path):
  """Red to green as asked, green left as it is, blue to green where red was asked for."""
  edited = write_sequences(tmp_path / "edited", [plain("green"), plain("green"), plain("green")])
  asked = prompts(tmp_path, ["green", "green", "red"], ["red", "green", "blue"])
  both = {"samples": edited, "reference": coloured, "prompts": asked}
  direction = score("clip_dir", **both)
  (tmp_path / "other").mkdir()
  others = prompts(tmp_path / "other", ["green", "green", "red"], ["red", "green", "red"])
  with pytest.raises(ConfigError, match="prompts"):
    compare(direction, score("clip_dir", **{**both, "prompts": others}))
  assert direction.protocol.details["undirected"] == 3  # the three frames of the second
  assert direction.values["clip_dir"] == pytest.approx((1 + 0.5) / 2, abs=0.02)
  assert score("clip_im", **both).values["clip_im"] == pytest.approx(1 / 3, abs=0.02)
  assert score("clip_out", samples=edited, prompts=asked).values["clip_out"] == pytest.approx(
    2 / 3, abs=0.02
  )
  dino = score("dino", **both)
  assert dino.values["dino"] == pytest.approx(1 / 3, abs=0.02)
  assert dino.protocol.extractor == "dino"
  # Of the third, green is nearer to neither: no success; nor is what did not change.
  assert score("frame_acc", samples=edited, prompts=asked).values["frame_acc"] < 0.7
  assert score("frame_acc_input", **both).values["frame_acc_input"] == pytest.approx(1 / 3)
  with pytest.raises(DataError, match="none of 9 edits has a direction"):
    score("clip_dir", samples=coloured, reference=coloured, prompts=asked)


def test_edits_without_a_source_prompt_are_refused(coloured, tmp_path):
  (tmp_path / "p.txt").write_text("red\n" * 9)
  with pytest.raises(DataError, match='no "source" in its attributes'):
    score("clip_dir", coloured, coloured, prompts=str(tmp_path / "p.txt"))


# Sounds


class Loudness:
  """In place of a network: two rows a second of simple facts."""

  name, digest, batch_size = "vggish", "loudness", 4

  def protocol(self):
    return {"feature": "loudness", "value_range": [-1.0, 1.0]}

  def __call__(self, media):
    rows = []
    for i, sound in enumerate(media):
      if len(sound.samples) < 8000:
        raise DataError(f"sound {i}: too short")
      parts = np.split(
        sound.samples[: len(sound.samples) // 8000 * 8000, 0], len(sound.samples) // 8000
      )
      rows += [[p.std(), np.abs(np.diff(p)).mean(), p.mean()] for p in parts]
    return {name: np.array(rows, np.float32) for name in ("embedding", "logits")}


def test_distances_of_sounds_are_over_all_their_windows(tmp_path):
  fake, real = (write_sounds(tmp_path / n, 6, seconds=2.0, seed=i) for i, n in enumerate("ab"))
  networks = {"vggish": Loudness(), "cnn14": Loudness()}
  found = score("fad", fake, real, extractors=networks)
  assert found.protocol.details["n_fake"] == 24 and found.values["fad"] > 0
  assert score("fad", real, real, extractors=networks).values["fad"] < 1e-9
  with pytest.raises(DataError, match="FAD over 24 real windows"):
    score("fad", fake, real, extractors=networks, allow_small=False)
  with pytest.raises(ConfigError, match="measured with n-1"):
    score("fad", fake, real, extractors=networks, covariance="n")
  assert score("fd_panns", fake, real, extractors=networks).values["fd_panns"] > 0


def test_sounds_that_cannot_be_read_are_refused_or_counted(tmp_path):
  fake, real = (write_sounds(tmp_path / n, 6, seconds=0.5, seed=i) for i, n in enumerate("ab"))
  write_sounds(tmp_path / "short", 1, seconds=0.3)
  shutil.copy(tmp_path / "short" / "000.wav", fake / "002.wav")
  (fake / "004.wav").write_bytes(b"RIFF")
  networks = {"cnn14": Loudness()}
  with pytest.raises(DataError, match=r"1 of 6 cannot be scored: 004\.wav: not decodable|002\.wav"):
    score("audio_kl", fake, real, extractors=networks)
  found = score("audio_kl", fake, real, extractors=networks, allow_missing=True)
  assert (found.protocol.missing, found.protocol.details["pairs"]) == (2, 4)
  assert found.protocol.details["form"] == "softmax" and found.values["audio_kl"] >= 0
  sigmoid = score("audio_kl", fake, real, extractors=networks, allow_missing=True,
                  conventions={"audio_kl": "sigmoid"})  # fmt: skip
  assert sigmoid.values["audio_kl"] != found.values["audio_kl"]


# Votes


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_votes_give_a_net_win_rate(tmp_path, suffix):
  path = tmp_path / f"votes.{suffix}"
  rows = [(f"clip{i}", vote) for i, votes in enumerate(
    ["ours ours theirs", "ours ours ours", "tie tie ours", "theirs theirs theirs"]
  ) for vote in votes.split()]  # fmt: skip
  if suffix == "csv":
    path.write_text("item,vote\n" + "".join(f"{a},{b}\n" for a, b in rows))
  else:
    path.write_text("".join(json.dumps({"item": a, "vote": b, "rater": 1}) + "\n" for a, b in rows))
  found = score("win_rate", votes=path)
  assert found.values["net"] == 25 and found.values["win_rate"] == 62.5
  assert found.protocol.count == 4 and found.protocol.details["rule"] == "majority"


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (
      "v.jsonl",
      '{"item": "a", "vote": "ours"}\n{"item": "a", "vote": "yes"}\n',
      "after 1 votes: \"vote\" is 'yes'",
    ),
    ("v.jsonl", '{"item": 3, "vote": "ours"}\n', 'no text "item"'),
    ("v.jsonl", '{"item": "a", "vote": ["ours"]}\n', "after 0 votes"),
    ("v.jsonl", "", "after 0 votes"),
    ("v.csv", "item,vote\n", "holds no vote"),
    ("v.csv", "item\na\n", '"vote" is None'),
  ],
)
def test_files_that_hold_no_votes_are_refused(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(DataError, match=message):
    score("win_rate", votes=tmp_path / name)


def test_the_file_of_votes_is_needed(tmp_path):
  with pytest.raises(ConfigError, match="needs --votes"):
    score("win_rate")
  with pytest.raises(ConfigError, match="no such file"):
    score("win_rate", votes=tmp_path / "none.csv")


def test_the_stand_in_for_a_network_has_the_width_it_says():
  assert extractor()(clips(2))["logits"].shape == (2, WIDTH)

"""Scores of sets: equal on any number of devices, refused or counted where data is not whole."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from media_sets import clips, extractor, write_clips, write_sequences

from vidgen.errors import ConfigError, DataError
from vidgen.evals import distances, features, scoring
from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors.i3d import i3d_extractor, random_i3d
from vidgen.evals.folders import open_media
from vidgen.evals.frechet import frechet_distance
from vidgen.evals.moments import moments_of
from vidgen.evals.protocol import compare
from vidgen.evals.registry import METRICS
from vidgen.evals.scoring import Session, _only
from vidgen.evals.settings import Settings

FAKE, REAL = clips(21, seed=1), clips(19, seed=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("sets")
  return write_clips(root / "fake", FAKE), write_clips(root / "real", REAL)


def settings(folders, **fields):
  fields = {
    "clip": ClipRule(frames=10), "allow_small": True, "extractors": {"i3d": extractor()},
    **fields,
  }  # fmt: skip
  return Settings(samples=folders[0], reference=folders[1], **fields)


def score(folders, name="fvd", **fields):
  return Session(settings(folders, **fields), [name]).score(name)


def test_fvd_is_the_distance_of_the_features_of_the_frames_in_the_files(folders):
  from vidgen.evals.folders import open_media, read_frames

  sets = [
    np.stack(
      [read_frames(item, ClipRule(frames=10)).frames for item in open_media(f, need="video").items]
    )
    for f in folders
  ]
  fake, real = (moments_of(extractor()(x)["logits"]) for x in sets)
  found = score(folders)
  assert found.values == {"fvd": frechet_distance(real, fake)}
  p = found.protocol
  assert (p.extractor, p.extractor_digest, p.count, p.missing) == ("i3d", "random 0", 21, 0)
  assert (p.frames, p.height, p.width, p.fps) == (10, 16, 16, 8.0)
  assert {"tensor": "logits", "covariance": "n-1", "n_fake": 21, "n_real": 19, "clip": "start",
          "resize": "linear"}.items() <= p.details.items()  # fmt: skip


@pytest.mark.parametrize("name", ["fvd", "kvd"])
def test_scores_are_equal_on_1_2_and_8_devices_with_ragged_last_batches(folders, monkeypatch, name):
  monkeypatch.setattr(features, "BLOCK", 2)  # so that there are blocks for all of them
  devices = jax.local_devices()
  scores = [score(folders, name, devices=tuple(devices[:n])) for n in (1, 2, 8)]
  assert len({str(s.values) for s in scores}) == 1
  assert scores[0] == scores[2]


@pytest.mark.soak
def test_fvd_by_i3d_is_equal_on_1_2_and_8_devices_with_ragged_last_batches(folders, monkeypatch):
  """With the whole network, which is compiled once for every device that has a block."""
  monkeypatch.setattr(features, "BLOCK", 2)
  i3d = i3d_extractor(random_i3d(0), digest="random 0", weights="random", batch_size=2)
  few = [_only(open_media(f, need="video"), {f"{i:04}" for i in range(n)})
         for f, n in zip(folders, (5, 3), strict=True)]  # fmt: skip
  monkeypatch.setattr(scoring, "open_media", lambda path, **_: few[path == folders[1]])
  fields = {"extractors": {"i3d": i3d}, "clip": ClipRule(frames=9)}
  devices = jax.local_devices()
  scores = [score(folders, devices=tuple(devices[:n]), **fields) for n in (1, 2, 8)]
  assert scores[0] == scores[1] == scores[2] and scores[0].values["fvd"] > 0
  assert scores[0].protocol.details["n_fake"] == 5 and len(devices) >= 8


def test_the_batch_size_changes_a_score_by_its_last_bits_at_most(folders):
  scores = [
    score(folders, extractors={"i3d": extractor(batch_size=n)}).values["fvd"] for n in (1, 3, 4, 32)
  ]
  np.testing.assert_allclose(scores, scores[0], rtol=1e-5)


def test_metrics_of_one_network_share_its_features(folders, monkeypatch):
  calls = []
  one = extractor()
  counted = dataclasses.replace(one, run=lambda *a: calls.append(1) or one.run(*a))
  names = ["fvd", "kvd"]
  session = Session(settings(folders, extractors={"i3d": counted}), names)
  both = {name: session.score(name) for name in names}
  assert len(calls) == 6 + 5  # 21 and 19 clips, in batches of 4 within blocks of 8
  assert both["fvd"] == score(folders, "fvd") and both["kvd"] == score(folders, "kvd")


def test_frames_of_clips_are_pictures_to_metrics_of_pictures(folders):
  networks = {"inception": extractor("inception")}
  found = score(folders, "fid", extractors=networks, clip=ClipRule(frames=3))
  assert found.protocol.details["n_fake"] == 63 and found.protocol.count == 21
  assert score((folders[0], folders[0]), "fid", extractors=networks).values["fid"] < 1e-9
  kid = score(folders, "kid", extractors=networks)
  assert kid.protocol.details["subset_size"] == 190 and set(kid.values) == {"kid", "deviation"}
  whole = score(folders, "kid", extractors=networks, conventions={"kid": "whole"})
  assert set(whole.values) == {"kid", "low", "high"}
  with pytest.raises(ConfigError, match="known are subsets, whole"):
    score(folders, "kid", extractors=networks, conventions={"kid": "half"})


def test_inception_scores_need_no_reference(folders):
  found = score((folders[0], None), "is_c3d", extractors={"c3d": extractor("c3d")})
  assert 1 <= found.values["is_c3d"] <= 5 and found.protocol.reference == ""


def test_few_samples_are_refused_unless_asked_for(folders):
  with pytest.raises(DataError, match=r"fvd of 21 and 19 samples is mostly bias: 2,048 are needed"):
    score(folders, allow_small=False)
  score(folders, "kvd", allow_small=False)  # unbiased, whatever the number


def test_too_small_a_reference_is_refused_before_anything_is_computed(folders, monkeypatch):
  small = dataclasses.replace(METRICS["fvd"], minimum=20)
  monkeypatch.setitem(METRICS, "fvd", small)
  refuse = dataclasses.replace(extractor(), run=lambda *a: pytest.fail("computed"))
  with pytest.raises(DataError, match="fvd of 21 and 19 samples"):
    score(folders, allow_small=False, extractors={"i3d": refuse})


def test_fd_over_cnn14_has_a_least_number_as_its_features_are_2048(tmp_path):
  from media_sets import write_sounds

  from vidgen.evals.extractors.cnn14 import Cnn14Extractor

  def run(params, x, lengths):
    return {"embedding": jax.numpy.ones((len(x), 4)), "logits": jax.numpy.ones((len(x), 4))}

  network = Cnn14Extractor({}, "d", run, "panns", {"embedding": 4, "logits": 4})
  sets = [write_sounds(tmp_path / name, 2) for name in "ab"]
  with pytest.raises(DataError, match="fd_panns of 2 and 2 samples is mostly bias: 2,048"):
    score(sets, "fd_panns", allow_small=False, extractors={"cnn14": network})


def test_values_that_are_not_finite_are_no_score(folders, monkeypatch):
  monkeypatch.setattr(distances, "frechet_distance", lambda *a, **k: float("nan"))
  with pytest.raises(DataError, match="fvd: fvd is nan"):
    score(folders)


def spoil(folder, kind):
  path = folder / "0003.mp4"
  if kind == "cut short":
    path.write_bytes(path.read_bytes()[:-100])
  elif kind == "empty":
    path.write_bytes(b"")
  elif kind == "few frames":
    path.unlink()
    write_clips(folder, FAKE[:1, :9], name=lambda i: "0003")


@pytest.mark.parametrize(
  ("kind", "which"), [("cut short", 0), ("empty", 0), ("few frames", 0), ("cut short", 1)]
)
def test_clips_that_cannot_be_read_are_refused_by_name_or_left_out_and_counted(
  folders, tmp_path, kind, which
):
  mine = list(folders)
  mine[which] = shutil.copytree(folders[which], tmp_path / "copy")
  spoil(mine[which], kind)
  total = 21 - 2 * which
  with pytest.raises(DataError, match=rf"1 of {total} cannot be scored: 0003\.mp4: "):
    score(mine)
  found = score(mine, allow_missing=True)
  details = found.protocol.details
  assert (found.protocol.missing, details["missing_real"]) == ((1, 0) if which == 0 else (0, 1))
  assert (details["n_fake"], details["n_real"]) == (21 - (which == 0), 19 - (which == 1))
  others = shutil.copytree(mine[which], tmp_path / "others")
  (others / "0003.mp4").unlink()
  mine[which] = others
  assert found.values == pytest.approx(score(mine).values, rel=1e-5)
  with pytest.raises(ConfigError, match="missing"):
    compare(score(mine), found)


def test_mixed_rates_are_refused_unless_resampled(folders, tmp_path):
  mixed = shutil.copytree(folders[0], tmp_path / "mixed")
  write_clips(mixed, FAKE[:1].repeat(2, axis=1), fps=16.0, name=lambda i: "0003")
  with pytest.raises(DataError, match=r"mixed rates, 0000\.mp4 has 8 .* 0003\.mp4 16; resample"):
    score((mixed, folders[1]))
  rule = ClipRule(frames=10, fps=8.0)
  found = score((mixed, folders[1]), clip=rule)
  assert found.protocol.fps == 8 and found.protocol.details["resampled_fps"] == 8
  slow = write_clips(tmp_path / "slow", REAL, fps=4.0)
  with pytest.raises(DataError, match="samples have 8 frames a second, the reference 4"):
    score((folders[0], slow))


def test_folders_of_pictures_state_their_rate_or_are_not_held_against_clips(folders, tmp_path):
  pictures = write_sequences(tmp_path, REAL[:12])
  with pytest.raises(DataError, match="no known rate; resample with --fps, and state"):
    score((folders[0], pictures))
  found = score((folders[0], pictures), clip=ClipRule(frames=10, sequence_fps=8.0))
  assert found.protocol.details["n_real"] == 12


def test_clips_of_several_lengths_need_a_number_of_frames(folders, tmp_path):
  mixed = shutil.copytree(folders[0], tmp_path / "mixed")
  write_clips(mixed, clips(1, frames=20), name=lambda i: "0003")
  score((mixed, folders[1]))
  with pytest.raises(
    DataError, match="at least 7 of 21 cannot be scored.*has 10 frames, 16 are asked for"
  ):
    score((mixed, None), "is_c3d", clip=ClipRule(), extractors={"c3d": extractor("c3d")})


@pytest.mark.parametrize(
  ("name", "changed", "field"),
  [
    ("fvd", {"covariance": "n"}, "details.covariance"),
    ("fvd", {"clip": ClipRule("centre", frames=9)}, "details.clip"),
    ("fvd", {"extractors": {"i3d": extractor(seed=1)}}, "extractor_digest"),
    ("kvd", {"seed": 1}, "details.bootstrap_seed"),
  ],
)
def test_scores_of_other_settings_are_not_compared(folders, name, changed, field):
  with pytest.raises(ConfigError, match=field):
    compare(score(folders, name), score(folders, name, **changed))


def test_weights_that_are_not_there_are_named_with_their_public_file(folders, tmp_path):
  with pytest.raises(ConfigError, match=r"fvd needs --weights i3d=PATH: I3D of Kinetics-400"):
    score(folders, extractors={})
  with pytest.raises(ConfigError, match="no such file"):
    score(folders, extractors={}, weights={"i3d": tmp_path / "none.pt"})
  with pytest.raises(ConfigError, match="--convention vfd: neither a metric nor an extractor"):
    score(folders, conventions={"vfd": "x"})


# Statistics of a reference, kept


def test_kept_statistics_give_the_same_score_without_the_reference(folders, tmp_path):
  whole = score(folders)
  stats = tmp_path / "deep" / "stats.npz"
  assert score(folders, stats=stats) == whole
  assert score((folders[0], None), stats=stats) == whole
  both = Session(settings(folders, stats=stats), ["fvd", "kvd"])
  assert {n: both.score(n) for n in both.names}["kvd"] == score(
    (folders[0], None), "kvd", stats=stats
  )
  with pytest.raises(ConfigError, match="no --reference, and --stats .* has no i3d"):
    score((folders[0], None), stats=tmp_path / "none.npz")


def test_a_cache_serves_the_same_data_and_settings_only(folders, tmp_path):
  cache = tmp_path / "cache"
  first = score(folders, cache=cache)
  (kept,) = cache.iterdir()
  calls = []
  one = extractor()
  counted = dataclasses.replace(one, run=lambda *a: calls.append(1) or one.run(*a))
  assert score(folders, cache=cache, extractors={"i3d": counted}) == first
  assert len(calls) == 6  # of the samples alone
  changed = shutil.copytree(folders[1], tmp_path / "changed")
  os.remove(changed / "0003.mp4")
  score((folders[0], changed), cache=cache)
  score(folders, cache=cache, extractors={"i3d": extractor(seed=1)})
  score(folders, cache=cache, clip=ClipRule("centre", frames=9))
  assert len(list(cache.iterdir())) == 4 and kept.is_file()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"extractors": {"i3d": extractor(seed=1)}}, "extractor.digest"),
    ({"clip": ClipRule(frames=9)}, "clip_frames: 10 -> 9"),
  ],
)
def test_statistics_of_another_protocol_are_refused_by_name(folders, tmp_path, fields, message):
  stats = tmp_path / "stats.npz"
  score(folders, stats=stats)
  for reference in (folders[1], None):
    with pytest.raises(ConfigError, match=message):
      score((folders[0], reference), stats=stats, **fields)
  with pytest.raises(ConfigError, match="data: "):
    score((folders[0], folders[0]), stats=stats)


# Several processes


def in_processes(count, fake, real, missing):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  script = Path(__file__).with_name("run_scoring.py")
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), address, str(count), str(i), str(fake), str(real), missing],
      stdout=subprocess.PIPE, text=True, env=environment,
    )
    for i in range(count)
  ]  # fmt: skip
  said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
  return [[line for line in lines if not line.startswith("[Gloo]")] for lines in said]


def test_several_processes_find_what_one_finds_or_refuse_together(folders, tmp_path):
  same = shutil.copytree(folders[0], tmp_path / "same")
  for i in range(19, 21):
    (same / f"{i:04}.mp4").unlink()
  names = ["fvd", "kvd", "psnr"]
  session = Session(settings((same, folders[1])), names)
  expected = [f"{name} {session.score(name).values}" for name in names]
  said = in_processes(3, same, folders[1], "refuse")
  assert said == [expected] * 3
  spoil(same, "cut short")
  for lines in in_processes(2, same, folders[1], "refuse"):
    assert all("1 of 19 cannot be scored: 0003.mp4: " in line for line in lines), lines

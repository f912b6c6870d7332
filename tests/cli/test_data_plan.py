"""`vidgen data plan`: what each bucket gets, and why samples are dropped."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from many_shapes import LENGTHS, SHAPES, many_shapes, name_of  # noqa: E402 (found by the line above)

from vidgen.cli import main  # noqa: E402 (likewise)
from vidgen.cli.data.plan import _latents  # noqa: E402 (likewise)
from vidgen.config import load_config  # noqa: E402 (likewise)
from vidgen.train.experiment import resolve  # noqa: E402 (likewise)

ROOT = Path(__file__).resolve().parents[2]
EMPTY = (name_of(8, *SHAPES[1]), name_of(1, *SHAPES[4]))
CONFIG = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from ml_collections import ConfigDict
from many_shapes import bucket, buckets
def get_config(arg=""):
  found = [dataclasses.asdict(b) for b in buckets()]
  if arg == "none":
    found = [{{**b, "min_seconds": 90.0, "max_seconds": 0.0}} for b in found if b["frames"] > 1]
  fields = {{"latent": {{"temporal_stride": 1, "spatial_stride": 2}}, "patch": [1, 1, 1],
            "buckets": [{{k: b[k] for k in ("name", "frames", "height", "width")}} for b in found]}}
  return ConfigDict({{
    "name": "shapes",
    "stage": {{"name": "movie_gen/t2v", "fields": fields}},
    "inputs": {{"buckets": found, "aspect_tolerance": 0.2, "max_upsampling": 1.0}},
    "train": {{"steps": 1100, "batch_size": 4}},
  }})
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return many_shapes(tmp_path_factory.mktemp("data"), without=EMPTY)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("config") / "shapes.py"
  path.write_text(CONFIG.format(tests=str(ROOT / "tests/inputs")))
  return str(path)


def test_the_plan_accounts_for_every_sample_and_every_step(data, config, tmp_path, capsys):
  report = tmp_path / "plan.json"
  words = ["data", "plan", data, "--config", config, "--json", str(report)]
  assert main(words) == 0
  printed, result = capsys.readouterr().out, json.loads(report.read_text())
  found = {one["bucket"]: one for one in result["buckets"]}
  assert len(found) == 20 and all(name in printed for name in found)
  for frames in LENGTHS.values():
    for number, (height, width) in enumerate(SHAPES):
      one = found[name_of(frames, height, width)]
      assert one["shape"] == [frames, height, width]
      assert one["latents"] == [frames, height // 2, width // 2, 16]
      assert one["samples"] == (0 if one["bucket"] in EMPTY else 1 + number % 2)
      assert one["batches_an_epoch"] == one["samples"] / 4
  dropped = result["dropped"]["video"]
  assert {reason: one["count"] for reason, one in dropped.items()} == dict.fromkeys(
    ["unreadable", "too short", "aspect beyond tolerance", "too small"], 1
  )
  assert "1 too short, such as video/train/00000.tar 00000" in printed
  chosen = sum(one["samples"] for one in found.values() if one["subset"] == "video")
  assert chosen + 4 == result["samples"]["video"]
  assert sum(one["share"] for one in found.values()) == pytest.approx(1)
  drawn = sum(one["epochs"] * one["samples"] for one in found.values())
  assert drawn == pytest.approx(result["steps"] * result["batch_size"])
  one = found[name_of(4, *SHAPES[1])]
  assert one["seconds"] == pytest.approx([0.625, 0.875])
  assert one["fps"] == pytest.approx([4 / 0.875, 4 / 0.625])
  assert "0.625-0.875" in printed and "4.571-6.4" in printed


def test_a_config_that_takes_no_sample_is_bad_data_and_still_reported(
  data, config, tmp_path, capsys
):
  report = tmp_path / "plan.json"
  assert main(["data", "plan", data, "--config", f"{config}:none", "--json", str(report)]) == 3
  told = capsys.readouterr()
  assert "no train sample is for any bucket" in told.err and "too short, such as" in told.out
  assert all(
    one["share"] == one["samples"] == 0 for one in json.loads(report.read_text())["buckets"]
  )


@pytest.mark.parametrize(
  ("words", "code"),
  [
    (["{data}", "--config", "missing.py"], 2),
    (["{data}/nowhere", "--config", "{config}"], 3),
    (["{data}", "--config", "{config}", "--split", "held_out"], 3),
  ],
)
def test_what_is_not_there_ends_with_its_code(words, code, data, config):
  assert main(["data", "plan", *(word.format(data=data, config=config) for word in words)]) == code


def test_buckets_that_do_not_choose_get_all_of_their_subset_and_nothing_is_measured(
  tmp_path, capsys
):
  root = many_shapes(tmp_path / "data")
  recipe = f"{ROOT}/configs/movie_gen/t2v_256.py:tiny"
  assert main(["data", "plan", root, "--config", recipe]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 and lines[1].split()[:2] == ["video", "8x16x16"]
  assert not (Path(root) / "clip_index").exists()


@pytest.mark.parametrize(
  "recipe",
  ["t2v_256.py:30b", "t2v_768.py:30b", "sft.py:30b", "image_1024.py:30b", "ablation_192.py:5b.2"],
)
def test_movie_gens_buckets_take_every_aspect_and_length_of_the_paper(recipe):
  """The latents of every bucket are known, and images are one to ten videos where both are."""
  experiment = resolve(load_config(f"{ROOT}/configs/movie_gen/{recipe}"))
  buckets = experiment.inputs.buckets
  assert set(_latents(experiment)) == {bucket.name for bucket in buckets}
  weights = {
    kind: sum(b.weight for b in buckets if b.subset == kind) for kind in ("video", "image")
  }
  if recipe.startswith("t2v"):
    assert weights["video"] == pytest.approx(10 * weights["image"])
    for seconds in (4.0, 5.5, 8.0, 11.99, 12.0, 14.0, 16.0):
      rates = {
        b.span().rate(seconds)
        for b in buckets
        if b.frames > 1 and b.min_seconds <= seconds < (b.max_seconds or 99)
      }
      assert len(rates) == 1 and 16 <= min(rates) <= 32
  if recipe.startswith("sft"):
    slow = sum(bucket.weight for bucket in buckets if bucket.min_seconds == 16)
    assert slow == weights["video"] / 2

"""Datasets built from recipes: deterministic, resumable, never half-built."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidgen import cli
from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.inputs import build as build_module
from vidgen.inputs.build import MARK, build_dataset, load_recipe, make_generator, verify_shards
from vidgen.inputs.decode import decode_video
from vidgen.inputs.prompts import read_prompts
from vidgen.inputs.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "data" / "shapes_world.py")


def small(variant="single", **changes):
  recipe = load_recipe(f"{RECIPE}:{variant}" if variant else RECIPE)
  subsets = dict.fromkeys(recipe.subsets, 0.5) | {"video": 1.0}
  fields = {"count": 20, "shard_size": 16, "subsets": subsets, **changes}
  return dataclasses.replace(recipe, **fields)


def content(folder):
  """Every file but the stats, which hold times, and what readers keep beside the shards."""
  left_out = ("_stats.json", ".index.npz")
  files = (p for p in Path(folder).rglob("*") if p.is_file() and not p.name.endswith(left_out))
  return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp("built") / "data"
  return folder, build_dataset(small(), folder, workers=1)


def test_a_clip_for_a_cascade_has_the_largest_models_frames_and_size():
  generator = make_generator(load_recipe(f"{RECIPE}:cascade"))
  record = generator.record("video", seed=0, split="train", index=0, key="a")
  clip = decode_video(record.files["mp4"])
  assert clip.frames.shape == (128, 96, 160, 3) and clip.duration == 2.0


def test_layout_counts_and_readers(built):
  folder, result = built
  assert result == json.loads((folder / "dataset.json").read_text())
  assert result["counts"]["video"] == {"train": 20, "held_out": 64}
  assert result["licence"] == "CC0-1.0" and result["seed"] == 0
  for subset in ("video", "image"):
    for split in ("train", "held_out"):
      source = open_source(folder, subset=subset, split=split)
      count = result["counts"][subset][split]
      assert len(source) == count and not source.problems
      rows = [pq.read_table(p) for p in sorted((folder / subset / split).glob("*.parquet"))]
      assert sum(len(r) for r in rows) == count
      keys = [k for r in rows for k in r["key"].to_pylist()]
      assert [source[i]["__key__"] for i in range(count)] == keys
      assert len(set(keys)) == count
  assert not (folder / MARK).exists() and not verify_shards(folder)


def test_prompts_can_be_read_and_name_their_attributes(built):
  prompts = read_prompts(built[0] / "prompts" / "held_out.jsonl")
  assert len(prompts) == 270
  names = {"shape", "colour", "motion", "background", "size", "speed", "count"}
  assert all(set(p.attributes or {}) == names for p in prompts)


def test_the_bytes_do_not_depend_on_the_workers(built, tmp_path):
  build_dataset(small(), tmp_path / "two", workers=2)
  assert content(tmp_path / "two") == content(built[0])


def test_another_seed_gives_other_clips(built, tmp_path):
  build_dataset(small(subsets={"video": 1.0}), tmp_path / "seed", seed=1, workers=1)
  name = "video/train/00000.tar"
  assert content(tmp_path / "seed")[name] != content(built[0])[name]


def test_a_finished_build_is_left_alone(built, monkeypatch):
  times = {p: p.stat().st_mtime_ns for p in built[0].rglob("*")}
  monkeypatch.setattr(build_module, "_do", lambda task: pytest.fail("nothing is to be done"))
  seen = []
  assert (
    build_dataset(small(), built[0], progress=lambda done, total: seen.append((done, total)))
    == built[1]
  )
  assert {p: p.stat().st_mtime_ns for p in built[0].rglob("*")} == times
  assert seen[-1][0] == seen[-1][1]


def test_another_dataset_is_not_overwritten(built):
  with pytest.raises(ConfigError, match="count: 20 -> 21.*another --out"):
    build_dataset(small(count=21), built[0])
  with pytest.raises(ConfigError, match="format: 'tar' -> 'array_record'"):
    build_dataset(small(), built[0], storage="array_record")


def test_a_folder_of_other_files_is_not_touched(tmp_path):
  (tmp_path / "thesis.txt").write_text("years of work")
  with pytest.raises(ConfigError, match="holds other files"):
    build_dataset(small(), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_shard_is_found_and_a_missing_one_rebuilt(tmp_path, built):
  recipe = small(subsets={"video": 1.0})
  build_dataset(recipe, tmp_path / "data", workers=1)
  before = content(tmp_path / "data")
  shard = tmp_path / "data" / "video" / "train" / "00001.tar"
  data = bytearray(shard.read_bytes())
  data[700] ^= 1
  shard.write_bytes(bytes(data))
  assert [e["shard"] for e in verify_shards(tmp_path / "data")] == ["video/train/00001.tar"]
  shard.unlink()
  assert [e["reason"] for e in verify_shards(tmp_path / "data")] == ["missing"]
  build_dataset(recipe, tmp_path / "data", workers=1)
  assert content(tmp_path / "data") == before


def build_slowly(folder):
  """Builds with a pause after each shard, so that it can be killed between two."""
  do = build_module._do

  def slow(task):
    do(task)
    time.sleep(0.3)

  build_module._do = slow
  build_dataset(small(), folder, workers=1)


def kill_midway(folder):
  process = multiprocessing.get_context("spawn").Process(target=build_slowly, args=(folder,))
  process.start()
  while not list(folder.glob("video/held_out/*_stats.json")):
    assert process.is_alive()
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGKILL)
  process.join()


def test_a_killed_build_is_no_dataset_and_goes_on_where_it_was(built, tmp_path):
  folder = tmp_path / "data"
  kill_midway(folder)
  assert not (folder / "dataset.json").exists() and (folder / MARK).exists()
  with pytest.raises(DataError, match="build it again"):
    verify_shards(folder)
  kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*_stats.json")}
  (folder / "video" / "train" / ".00007.tar.123.partial").write_bytes(b"left by the killed process")
  build_dataset(small(), folder, workers=1)
  assert content(folder) == content(built[0])
  assert kept and all(p.stat().st_mtime_ns == t for p, t in kept.items())


def test_what_a_killed_build_of_something_else_left_is_cleared(tmp_path):
  folder = tmp_path / "data"
  kill_midway(folder)
  build_dataset(small(subsets={"image": 1.0}), folder, workers=1)
  names = {name.split("/")[0] for name in content(folder)}
  assert names == {"image", "prompts", "dataset.json"}


def test_two_builds_of_one_folder_do_not_meet(tmp_path):
  recipe = small(subsets={"image": 1.0})

  def second(done, total):
    if done == 0:
      with pytest.raises(ConfigError, match="being built by another process"):
        build_dataset(recipe, tmp_path / "data", workers=1)

  build_dataset(recipe, tmp_path / "data", workers=1, progress=second)
  assert (tmp_path / "data" / "dataset.json").exists()


def test_an_error_in_a_worker_names_the_shard(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(build_module, "write_shard", full)
  with pytest.raises(DataError, match="00000.tar: OSError.*No space left"):
    build_dataset(small(), tmp_path / "data", workers=1)
  assert not (tmp_path / "data" / "dataset.json").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"subsets": {"smell": 1.0}}, "subsets smell"),
    ({"subsets": {"video": -1.0}}, "positive"),
    ({"count": 0}, "positive"),
    ({"generator": "other"}, "generator"),
  ],
)
def test_impossible_recipes_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    small(**changes)


def test_the_command_line_builds_and_checks(tmp_path, capsys):
  out, report = str(tmp_path / "data"), tmp_path / "report.json"
  command = ["data", "build", f"{RECIPE}:single", "--out", out, "--count", "8", "--workers", "1"]
  assert cli.main([*command, "--json", str(report)]) == 0
  assert json.loads(report.read_text())["counts"]["video"]["train"] == 8
  assert "video 8 + 64 held-out" not in capsys.readouterr().err
  assert cli.main(["data", "check", out, "--json", str(report)]) == 0
  assert json.loads(report.read_text())["bad"] == []
  shard = next(Path(out).glob("video/train/*.tar"))
  shard.write_bytes(shard.read_bytes()[:-5000])
  assert cli.main(["data", "check", out, "--json", str(report)]) == 3
  assert any(e["shard"] == "video/train/00000.tar" for e in json.loads(report.read_text())["bad"])
  assert cli.main([*command[:-2], "--seed", "9"]) == 2
  assert "holds another dataset" in capsys.readouterr().err
  assert cli.main(["data", "build", f"{RECIPE}:nope", "--out", out]) == 2
  assert cli.main(["data", "build", "missing.py", "--out", out]) == 2


def test_array_record_holds_the_same_samples(built, tmp_path):
  build_dataset(small(subsets={"video": 1.0}), tmp_path / "records", storage="array_record")
  for split in ("train", "held_out"):
    tar = open_source(built[0], subset="video", split=split)
    records = open_source(tmp_path / "records", subset="video", split=split)
    assert len(tar) == len(records)
    for i in (0, len(tar) - 1):
      first, second = tar[i], records[i]
      assert {k: v for k, v in first.items() if k != "__shard__"} == {
        k: v for k, v in second.items() if k != "__shard__"
      }


GENERATOR = """
import dataclasses

from vidgen.inputs.writers import Record


@dataclasses.dataclass(frozen=True)
class Greetings:
  word: str = "hello"

  @property
  def subsets(self):
    return ("text",)

  def record(self, subset, *, seed, split, index, key):
    return Record(key, {"jpg": b"no picture"}, f"{self.word} {split} {seed} {index}", {}, {})

  def prompts(self, *, seed, count):
    return [{"key": str(i), "prompt": self.word, "attributes": {}} for i in range(count)]


class NoDataclass:
  pass


@dataclasses.dataclass
class NoGenerator:
  word: str = ""
"""


def own_recipe(folder, generator, *, module=GENERATOR):
  """A recipe with its own generator, in a module beside it; its path."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f"{generator.partition(':')[0]}.py").write_text(module)
  path = folder / "recipe.py"
  path.write_text(
    f"""
from ml_collections import ConfigDict

def get_recipe(arg=""):
  return ConfigDict(dict(
    name="greetings", licence="CC0-1.0", source="none", filters="none", count=6, prompts=2,
    shard_size=4, generator={generator!r}, subsets=dict(text=1.0), fields=dict(word="hi"),
  ))
"""
  )
  return path


@pytest.fixture
def own_modules(monkeypatch):
  """What is imported or let in during the test is forgotten after it."""
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(build_module, "_brought", set())
  before = set(sys.modules)
  yield
  for name in set(sys.modules) - before:
    if name.startswith("own_"):
      del sys.modules[name]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_recipe_brings_its_own_generator(tmp_path, own_modules, workers):
  """From a module beside it, in worker processes too."""
  recipe = own_recipe(tmp_path / "recipes", "own_greetings:Greetings")
  out = tmp_path / "data"
  command = ["data", "build", str(recipe), "--out", str(out), "--seed", "3", "--workers", workers]
  assert cli.main(command) == 0
  source = open_source(out, subset="text")
  assert [s["txt"] for s in source] == [b"hi train 3 %d" % i for i in range(6)]
  assert [p.text for p in read_prompts(out / "prompts" / "held_out.jsonl")] == ["hi", "hi"]
  stored = json.loads((out / "dataset.json").read_text())
  assert stored["recipe"]["generator"] == "own_greetings:Greetings"
  assert cli.main(command) == 0  # finds it there


def test_a_generator_in_the_recipe_file_itself(tmp_path, own_modules):
  recipe = own_recipe(tmp_path, "own_recipe:Greetings", module="")
  (tmp_path / "own_recipe.py").write_text(GENERATOR + recipe.read_text())
  result = build_dataset(load_recipe(str(tmp_path / "own_recipe.py")), tmp_path / "data", workers=1)
  assert result["counts"]["text"]["train"] == 6


@pytest.mark.parametrize(
  ("generator", "message"),
  [
    ("own_bad:Missing", "own_bad:Missing: AttributeError"),
    ("own_bad:NoDataclass", "not a dataclass"),
    ("own_bad:NoGenerator", "needs subsets, record and prompts"),
    ("own_bad:", "AttributeError"),
    ("json:JSONEncoder", "json.py is hidden by"),
  ],
)
def test_a_generator_that_is_none_is_refused(tmp_path, own_modules, generator, message):
  with pytest.raises(ConfigError, match=message):
    load_recipe(str(own_recipe(tmp_path, generator)))


def test_a_module_that_fails_when_it_is_imported_is_a_config_error(tmp_path, own_modules):
  recipe = own_recipe(tmp_path, "own_failing:Greetings", module="1 / 0")
  with pytest.raises(ConfigError, match="own_failing:Greetings: ZeroDivisionError"):
    load_recipe(str(recipe))


def test_the_fields_of_an_own_generator_are_checked(tmp_path, own_modules):
  module = GENERATOR.replace("word: str", "phrase: str").replace("self.word", "self.phrase")
  with pytest.raises(ConfigError, match=r"recipe.fields.word: unknown key; known are phrase"):
    load_recipe(str(own_recipe(tmp_path, "own_fields:Greetings", module=module)))


@pytest.mark.parametrize("name", ["dataset.json", MARK])
def test_a_plan_stored_in_the_output_folder_imports_nothing(tmp_path, own_modules, name):
  """Neither going on with a build, nor reading or checking, nor a recipe made of what is stored."""
  out = tmp_path / "data"
  evil = own_recipe(out, "own_payload:Greetings", module=f"open({str(tmp_path / 'ran')!r}, 'w')\n")
  evil.unlink()
  sys.path.insert(0, str(out))  # as if the user had started Python there
  stored = {**dataclasses.asdict(small()), "generator": "own_payload:Greetings"}
  plan = {"digest": "0", "shards": [], "recipe": stored, "generator": "own_payload:Greetings"}
  (out / name).write_text(json.dumps(plan))
  command = ["data", "build", f"{RECIPE}:single", "--out", str(out), "--count", "2"]
  assert cli.main([*command, "--workers", "1"]) == (2 if name == "dataset.json" else 0)
  assert cli.main(["data", "check", str(out)]) in (0, 3)
  with pytest.raises(
    ConfigError, match="generator 'own_payload:Greetings': known are shapes_world"
  ):
    cfg.build(build_module.Recipe, stored)
  assert not (tmp_path / "ran").exists() and "own_payload" not in sys.modules

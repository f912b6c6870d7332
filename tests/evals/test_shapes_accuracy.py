"""Accuracy on ShapesWorld: real clips are right, others wrong, nothing is left out of the mean."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from test_samples import write

from vidgen.errors import ConfigError, DataError
from vidgen.evals.samples import read_samples
from vidgen.evals.shapes_accuracy import score
from vidgen.shapes_world import WorldSpec, render_many

COUNT = 24
FIVE = ("shape", "colour", "motion", "background", "all")


@pytest.fixture(scope="module")
def world():
  spec = WorldSpec(two_objects=0.0)
  return render_many(spec, seed=3, split="held_out", indices=range(COUNT), size=16, frames=8)


@pytest.fixture
def folder(tmp_path, world):
  """Samples that show exactly what was asked for, and the reference that asks for it."""
  captions = world["captions"]
  prompts = [caption.text for caption in captions]
  write(tmp_path / "samples", COUNT, videos=world["video"], prompts=prompts)
  lines = [
    {"key": f"key{i}", "prompt": c.text, "attributes": c.attributes} for i, c in enumerate(captions)
  ]
  write_reference(tmp_path, lines)
  return tmp_path


def write_reference(folder, lines):
  (folder / "data" / "prompts").mkdir(parents=True, exist_ok=True)
  path = folder / "data" / "prompts" / "held_out.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reference(folder):
  path = folder / "data" / "prompts" / "held_out.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def measure(folder, *, allow_missing=False):
  samples = read_samples(folder / "samples", allow_missing=allow_missing)
  return score(samples, reference=folder / "data")


def test_real_clips_are_right_after_mp4(folder):
  result = measure(folder)
  assert {name: result.values[name] for name in FIVE} == dict.fromkeys(FIVE, 1.0)
  assert result.protocol.count == COUNT and result.protocol.missing == 0
  assert (result.protocol.frames, result.protocol.height, result.protocol.fps) == (8, 16, 4.0)
  assert len(result.verdicts) == COUNT and all(v["right"]["all"] for v in result.verdicts)


def test_clips_of_another_caption_are_wrong(folder):
  lines = reference(folder)
  turned = lines[1:] + lines[:1]
  moved = [{**a, "attributes": b["attributes"]} for a, b in zip(lines, turned, strict=True)]
  write_reference(folder, moved)
  result = measure(folder)
  expected = sum(
    all(a["attributes"][n] == b["attributes"][n] for n in FIVE[:4])
    for a, b in zip(lines, turned, strict=True)
  )
  assert result.values["all"] == expected / COUNT < 0.2
  colours = [
    a["attributes"]["colour"] == b["attributes"]["colour"]
    for a, b in zip(lines, turned, strict=True)
  ]
  assert result.values["colour"] == sum(colours) / COUNT < 0.5


def test_missing_samples_are_refused_or_count_as_wrong(folder):
  whole = measure(folder)
  (folder / "samples" / "00003.mp4").unlink()
  (folder / "samples" / "00007.mp4").write_bytes(b"no video")
  with pytest.raises(DataError, match="2 of 24 samples.*00003.mp4: missing; 00007.mp4: not the"):
    measure(folder)
  result = measure(folder, allow_missing=True)
  assert result.values["all"] == result.values["shape"] == (COUNT - 2) / COUNT
  asked = [i for i, line in enumerate(reference(folder)) if line["attributes"]["size"]]
  assert result.values["size"] == sum(i not in (3, 7) for i in asked) / len(asked)
  assert (result.protocol.count, result.protocol.missing) == (COUNT, 2)
  assert result.protocol.shared() != whole.protocol.shared()
  assert result.verdicts[3]["problem"] == "missing" and not result.verdicts[3]["right"]["all"]


def test_samples_are_found_by_key_or_else_by_prompt(folder, world):
  lines = reference(folder)
  prompts = [line["prompt"] for line in lines]
  write(folder / "samples", COUNT, videos=world["video"], prompts=prompts, keys=False)
  write_reference(folder, [{k: v for k, v in line.items() if k != "key"} for line in lines])
  assert measure(folder).values["all"] == 1.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda lines: lines[1:], "sample 0 .*is not in it"),
    (lambda lines: [{**lines[0], "prompt": "else"}, *lines[1:]], "has another prompt there"),
  ],
)
def test_samples_that_are_not_those_of_the_reference_are_refused(folder, change, message):
  write_reference(folder, change(reference(folder)))
  with pytest.raises(DataError, match=message):
    measure(folder)


def test_the_same_words_for_different_things_need_keys(folder, world):
  lines = reference(folder)
  prompts = ["the same"] * COUNT
  write(folder / "samples", COUNT, videos=world["video"], prompts=prompts, keys=False)
  write_reference(folder, [{**line, "prompt": "the same"} for line in lines])
  with pytest.raises(DataError, match="several sets of attributes"):
    measure(folder)


def test_references_without_attributes_are_refused(folder):
  lines = reference(folder)
  del lines[2]["attributes"]["motion"]
  write_reference(folder, lines)
  with pytest.raises(ConfigError, match="line 3: no attribute motion"):
    measure(folder)
  with pytest.raises(ConfigError, match="no such file"):
    score(read_samples(folder / "samples"), reference=folder / "samples")


# Runs `vidgen` where the modules that the first argument names cannot be imported.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
from vidgen.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_what_setup_lists_for_scoring_is_all_that_scoring_needs(folder, monkeypatch):
  described = {}
  monkeypatch.setattr("setuptools.setup", lambda **settings: described.update(settings))
  runpy.run_path(str(Path(__file__).parents[2] / "setup.py"))
  extras = described["extras_require"]
  names = {re.split("[<>=]", line)[0] for line in set(extras["data"]) - set(extras["eval"])}
  assert {"pyarrow", "tensorflow-datasets"} <= names
  modules = ["PIL" if name == "pillow" else name.replace("-", "_") for name in names]
  command = [sys.executable, "-c", WITHOUT, ",".join(modules), "eval", "--metrics", "shapes_probe"]
  command += ["--samples", folder / "samples", "--reference", folder / "data"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr

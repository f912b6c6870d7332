"""The exported program runs where there is only jax and numpy, and gives the stage's video."""

import importlib
import json
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from trained_run import changed, experiment, params, stage

from vidgen.cli.sample import prefixer
from vidgen.config import plain
from vidgen.errors import CheckpointError, ConfigError
from vidgen.evals.generation import text_inputs
from vidgen.inputs.text import ByteTokenizer
from vidgen.interop import run_exported, stablehlo
from vidgen.interop.parameters import Origin
from vidgen.systems import make_stage
from vidgen.systems.sampling import Sampler

ORIGIN = Origin(step=5, weights="ema", config_digest="c", params_digest="p")
PROMPTS = ["a red circle", "naïve ✓ é", "x" * 100]
BARE = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy")  # jax and what it requires


def export(directory, *, weights=None, config=None, of=None):
  config = plain(experiment()) if config is None else config
  return stablehlo.export_stablehlo(
    directory, stage=of or stage(), params=params() if weights is None else weights,
    settings=experiment().sample, fps=4.0, config=config, origin=ORIGIN,
  )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "out"
  export(folder)
  return folder


@pytest.fixture
def copy(exported, tmp_path):
  return Path(shutil.copytree(exported, tmp_path / "copy"))


def direct(prompts, *, seed):
  """The videos as `vidgen sample` makes them."""
  sampler = Sampler(
    stage(), params=params(), settings=experiment().sample, seed=seed, batch_size=len(prompts)
  )
  inputs = text_inputs(stage(), prompts, tokenizer=ByteTokenizer(), fps=4.0)
  return sampler.decode(sampler.latents(inputs, np.arange(len(prompts))))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """A folder of packages with jax, numpy and what jax itself requires; no flax, no flatbuffers."""
  folder = tmp_path_factory.mktemp("site")
  for name in BARE:
    package = Path(importlib.import_module(name).__file__).parent
    for path in (package, package.parent / f"{name}.libs", *package.parent.glob(f"{name}-*-info")):
      if path.exists():
        (folder / path.name).symlink_to(path)
  return folder


def bare_python(site, code, *arguments):
  """Runs code in an isolated Python that sees the standard library and `site` alone."""
  start = f"import sys; sys.path.append({str(site)!r})\n"
  return subprocess.run(
    [sys.executable, "-I", "-S", "-c", start + code, *map(str, arguments)],
    capture_output=True, text=True, timeout=300, cwd=site,
    env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"},
  )  # fmt: skip


def test_a_process_with_only_jax_and_numpy_gives_the_same_video(copy, site, tmp_path):
  code = (
    "import runpy, sys\n"
    "for name in ('vidgen', 'flax', 'flatbuffers', 'safetensors', 'jaxtyping'):\n"
    "  try:\n"
    "    __import__(name)\n"
    "  except ImportError:\n"
    "    continue\n"
    "  sys.exit(name + ' is there')\n"
    "runpy.run_path(sys.argv[1], run_name='__main__')\n"
  )
  arguments = [a for prompt in PROMPTS for a in ("--prompt", prompt)]
  code = code.replace("runpy.run_path(sys.argv[1]", "del sys.argv[0]; runpy.run_path(sys.argv[0]")
  out = tmp_path / "video.npy"
  done = bare_python(site, code, copy / "run.py", *arguments, "--seed", 11, "--out", out)
  assert done.returncode == 0, done.stderr
  video = np.load(out, allow_pickle=False)
  expected = direct(PROMPTS, seed=11)
  assert video.dtype == np.float32 and video.shape == (3, 8, 16, 16, 3)
  np.testing.assert_allclose(video, expected, atol=1e-5)
  assert np.abs(expected - direct(PROMPTS, seed=12)).max() > 0.1  # it does depend on the seed


def test_a_bare_process_refuses_a_damaged_export(copy, site):
  path = copy / run_exported.WEIGHTS
  path.write_bytes(path.read_bytes()[:-1])
  code = "import runpy; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
  done = bare_python(site, code, copy / "run.py", "--prompt", "a", "--out", copy / "v.npy")
  assert done.returncode == 1 and "weights.npz" in done.stderr and "Traceback" not in done.stderr


def test_the_batch_is_free_and_samples_do_not_depend_on_it(exported):
  sample = run_exported.load(exported)
  whole = sample(PROMPTS, seed=2**32 - 1)
  for i, prompt in enumerate(PROMPTS):
    alone = sample([prompt], seed=2**32 - 1, first=i)
    np.testing.assert_allclose(alone[0], whole[i], atol=1e-5)


def test_the_manifest_says_what_goes_in_and_comes_out(exported):
  manifest = run_exported.read_manifest(exported)
  assert manifest["platforms"] == ["cpu", "cuda", "tpu"] and manifest["platforms_left_out"] == ""
  assert manifest["inputs"]["text"] == {"shape": ["b", 32], "dtype": "int32"}
  assert manifest["video"]["shape"] == ["b", 8, 16, 16, 3]
  assert manifest["settings"]["steps"] == experiment().sample.steps
  assert manifest["parity"]["difference"] <= manifest["parity"]["tolerance"] == 1e-5
  assert manifest["config"] == plain(experiment()) and manifest["origin"]["step"] == 5
  readme = (exported / "README.md").read_text()
  assert "float32 [b, 8, 16, 16, 3]" in readme and "cpu, cuda, tpu" in readme


def test_prompts_become_the_tokens_they_were_trained_as(exported):
  manifest = run_exported.read_manifest(exported)
  prompts = ["", "a", "é" * 40, "\0\n", "\ud800", "x" * 31, "x" * 32]
  ours = text_inputs(stage(), prompts, tokenizer=ByteTokenizer(), fps=4.0)
  theirs = run_exported.encode(prompts, manifest)
  assert set(ours) == set(theirs)
  for name, array in ours.items():
    np.testing.assert_array_equal(theirs[name], array, strict=True)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
  """An export of a run whose captions began with their rate and camera motion."""
  folder = tmp_path_factory.mktemp("captioned") / "out"
  config = plain(experiment())
  config["inputs"]["prefix"] = ["fps", "camera"]
  export(folder, config=config)
  return folder


@pytest.mark.parametrize("camera", ["", "zoom in", " Pan left. ", "é."])
def test_prompts_get_the_prefix_that_vidgen_sample_gives(captioned, camera):
  """Token for token, also of prompts that begin with a rate, a camera motion, or parts of one."""
  manifest = run_exported.read_manifest(captioned)
  inputs = types.SimpleNamespace(prefix=("fps", "camera"))
  prefix = prefixer(inputs, fps=4.0, frames=8, camera=camera)
  prompts = ["", "a", "FPS-16 a", "FPS-4 FPS-8 a", "zoom in. a", "FPS-4 zoom in. a", "FPS- a"]
  prompts += ["zoom in", "Pan left. Pan left. a", "FPS-٣ a", " FPS-4 a", "é. é", "x" * 40]
  ours = text_inputs(stage(), [prefix(p) for p in prompts], tokenizer=ByteTokenizer(), fps=4.0)
  theirs = run_exported.encode(prompts, manifest, camera=camera)
  for name, array in ours.items():
    np.testing.assert_array_equal(theirs[name], array, strict=True)
  bare = text_inputs(stage(), prompts, tokenizer=ByteTokenizer(), fps=4.0)
  assert (bare["text"] != ours["text"]).any()


def test_an_exported_program_samples_behind_the_prefix(captioned, exported, copy):
  """The video is that of the prefixed prompt; a motion that was in no caption is refused."""
  video = run_exported.load(captioned)(["a red circle"], seed=11, camera="zoom in")
  expected = direct(["FPS-4 zoom in. a red circle"], seed=11)
  np.testing.assert_allclose(video, expected, atol=1e-5)
  assert np.abs(expected - direct(["a red circle"], seed=11)).max() > 1e-3
  assert "`FPS-4 ` and a camera motion" in (captioned / "README.md").read_text()
  assert "before every prompt" not in (exported / "README.md").read_text()
  with pytest.raises(ValueError, match="no camera motion"):
    run_exported.load(exported)(["a"], camera="zoom in")
  seal(copy, lambda manifest: manifest.pop("prefix"))  # as of older exports
  np.testing.assert_array_equal(
    run_exported.load(copy)(["a"], seed=1), run_exported.load(exported)(["a"], seed=1)
  )


@pytest.mark.parametrize(
  "name", ["manifest.json", "sample.jax_export", "weights.npz", "vendor/flatbuffers/table.py"]
)
def test_a_flipped_bit_a_cut_or_a_missing_file_is_refused(copy, name):
  path = copy / name
  whole = path.read_bytes()
  for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 2):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=Path(name).name):
      run_exported.load(copy)
  path.write_bytes(whole[:-5])
  with pytest.raises(ValueError, match=Path(name).name):
    run_exported.load(copy)
  path.unlink()
  with pytest.raises(ValueError, match=Path(name).name):
    run_exported.load(copy)


def seal(folder, change):
  """Changes the manifest and makes everything agree with the files again, as an attacker would."""
  path = folder / run_exported.MANIFEST
  manifest = json.loads(path.read_text())
  del manifest["sha256"]
  change(manifest)
  for name, facts in manifest["files"].items():
    if (folder / name).is_file():
      facts["size"] = (folder / name).stat().st_size
      facts["sha256"] = run_exported.file_sha256(folder / name)
  manifest["sha256"] = run_exported.json_sha256(manifest)
  path.write_text(json.dumps(manifest))


def weights_of(folder):
  with np.load(folder / run_exported.WEIGHTS, allow_pickle=False) as archive:
    return dict(archive)


class Exploding:
  def __reduce__(self):
    return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda w: w["network/patch_in/bias"].__setitem__(0, np.nan), "patch_in/bias is not finite"),
    (lambda w: w.pop("network/patch_in/bias"), "names differ"),
    (lambda w: w.update(extra=np.zeros(1)), "names differ"),
    (lambda w: w.update({"network/patch_in/bias": np.zeros(5, np.float32)}), "not what the manif"),
    (lambda w: w.update({"network/patch_in/bias": np.array([Exploding()])}), "damaged"),
  ],
  ids=["nan", "too few", "too many", "shape", "pickle"],
)
def test_weights_that_are_not_the_programs_are_refused(copy, change, message):
  weights = weights_of(copy)
  change(weights)
  np.savez(copy / run_exported.WEIGHTS, **weights)
  seal(copy, lambda manifest: None)
  with pytest.raises(ValueError, match=message):
    run_exported.load(copy)


def test_an_archive_that_unpacks_to_more_than_it_says_is_refused(copy):
  weights = weights_of(copy)
  with zipfile.ZipFile(copy / run_exported.WEIGHTS, "w", zipfile.ZIP_DEFLATED) as archive:
    for name in weights:
      archive.writestr(f"{name}.npy", bytes(10_000_000))
  seal(copy, lambda manifest: None)
  with pytest.raises(ValueError, match="more than the manifest says"):
    run_exported.load(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}}), "outside of the export"),
    (lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}}), "outside of the"),
    (lambda m: m["files"].pop("weights.npz"), "does not name weights.npz"),
    (lambda m: m.update(format_version=2), "which this program reads"),
    (lambda m: m.update(format="other"), "which this program reads"),
  ],
)
def test_manifests_of_other_kinds_are_refused(copy, change, message):
  seal(copy, change)
  with pytest.raises(ValueError, match=message):
    run_exported.load(copy)


def test_nothing_is_written_when_the_program_differs_from_the_stage(tmp_path, monkeypatch):
  load = run_exported.load
  monkeypatch.setattr(
    run_exported, "load", lambda folder: lambda *a, **k: load(folder)(*a, **k) + np.float32(3e-5)
  )
  with pytest.raises(CheckpointError, match="differs by 3"):
    export(tmp_path / "out")
  monkeypatch.setattr(
    run_exported, "load", lambda folder: lambda *a, **k: load(folder)(*a, **k) * np.float32("nan")
  )
  with pytest.raises(CheckpointError, match="differs by nan"):
    export(tmp_path / "out")
  assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_or_not_the_stages_are_refused(tmp_path):
  bad = jax.tree.map(np.array, params())
  bad["text"]["mix"][0, 0] = np.inf
  with pytest.raises(CheckpointError, match="not finite: text/mix"):
    export(tmp_path / "out", weights=bad)
  other = make_stage("movie_gen/t2v", changed(layers=2).stage.fields)
  with pytest.raises(CheckpointError, match=r"\+ network/blocks/"):
    export(tmp_path / "out", of=other)
  assert list(tmp_path.iterdir()) == []


def test_only_an_older_export_is_replaced(tmp_path, copy):
  (copy / "left_over").touch()
  export(copy)
  assert not (copy / "left_over").exists() and run_exported.read_manifest(copy)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  (tmp_path / "mine" / "manifest.json").write_text('{"format": 1}')  # as a checkpoint has one
  with pytest.raises(ConfigError, match="not empty and not an export"):
    export(tmp_path / "mine")


def test_tokenizers_that_the_runner_lacks_are_refused(tmp_path):
  config = plain(experiment())
  config["inputs"]["tokenizer"] = "sentencepiece"
  with pytest.raises(ConfigError, match="tokenizer"):
    export(tmp_path / "out", config=config)


def test_the_runner_imports_nothing_of_ours():
  source = Path(run_exported.__file__).read_text()
  assert (
    "import vidgen" not in source and "from vidgen" not in source and "pickle=True" not in source
  )

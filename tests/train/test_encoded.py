"""Training on frozen text encoders: run on every batch, or their embeddings read from a cache."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from test_loop import digests, lines  # noqa: E402 (sorted with the next)
from text_encoder_folders import write_encoder  # noqa: E402 (found by the line above)

from vidgen.cli import main  # noqa: E402 (likewise)
from vidgen.cli.bench import step  # noqa: E402 (likewise)
from vidgen.config import plain  # noqa: E402 (likewise)
from vidgen.dist.mesh import make_mesh  # noqa: E402 (likewise)
from vidgen.errors import CheckpointError, ConfigError, DataError  # noqa: E402 (likewise)
from vidgen.inputs import embed  # noqa: E402 (likewise)
from vidgen.inputs.build import build_dataset, load_recipe  # noqa: E402 (likewise)
from vidgen.inputs.check import check_dataset  # noqa: E402 (likewise)
from vidgen.inputs.encoders import open_encoder  # noqa: E402 (likewise)
from vidgen.systems import make_stage  # noqa: E402 (likewise)
from vidgen.train.encoded import open_data  # noqa: E402 (likewise)
from vidgen.train.experiment import resolve  # noqa: E402 (likewise)
from vidgen.train.loop import train  # noqa: E402 (likewise)

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"t5": 48, "clip": 24}
WIDTHS = {"t5": 24, "clip": 16}
STEPS, BATCH = 4, 8
FIELDS = {
  "layers": 1, "width": 32, "heads": 2, "mlp_width": 32, "patch": (4, 4, 4), "max_grid": (2, 4, 4),
  "latent": None, "dtype": "float32", "remat": "none",
  "text_streams": {n: {"width": WIDTHS[n], "length": LENGTHS[n]} for n in LENGTHS},
  "buckets": [{"name": "video", "frames": 8, "height": 16, "width": 16}],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A small ShapesWorld in `data`, and encoders beside it."""
  root = tmp_path_factory.mktemp("root")
  recipe = load_recipe(str(ROOT / "data" / "shapes_world.py:single"))
  recipe = dataclasses.replace(recipe, count=12, subsets={"video": 1.0}, shard_size=8)
  build_dataset(recipe, root / "data", seed=0, workers=1)
  for name in LENGTHS:
    write_encoder(root / "encoders" / name, name)
  for name in LENGTHS:
    assert main(embed_arguments(root / "data", root, name)) == 0
  return root


def embed_arguments(data, root, name, *more):
  encoder = f"{name}={root / 'encoders' / name},length={LENGTHS[name]}"
  return ["data", "embed", str(data), "--encoder", encoder, "--batch-size", "8", *more]


def experiment(root, *, steps=STEPS, embeddings="", sheet_every=0, **encoders):
  """`encoders` replace fields of single ones."""
  sources = {
    n: {"folder": str(root / "encoders" / n), "length": LENGTHS[n], **encoders.get(n, {})}
    for n in LENGTHS
  }
  return resolve(
    ConfigDict(
      {
        "name": "tiny",
        "stage": {"name": "movie_gen/t2v", "fields": FIELDS},
        "inputs": {
          "buckets": [{"name": "video", "frames": 8, "height": 16, "width": 16, "fps": 4.0}],
          "encoders": sources, "embeddings": embeddings, "caption_dropout": 0.3,
        },
        "train": {
          "steps": steps, "batch_size": BATCH, "save_every": 2, "eval_every": 2,
          "eval_batches": 1, "log_every": 1, "sheet_every": sheet_every, "sheet_count": 2,
          "unsharded_tolerance": 1.0, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        },
        "sample": {"steps": 2, "guidance_scale": 2.0, "linear_steps": 4},
        "mesh": {"data": 2, "fsdp": 4},
      }
    )
  )  # fmt: skip


def open_it(one, root, workdir):
  return open_data(one, str(root / "data"), workdir=workdir, mesh=make_mesh(one.mesh))


def run(one, root, workdir, **options):
  stage = make_stage(one.stage.name, one.stage.fields)
  return train(one, stage=stage, data=open_it(one, root, workdir), workdir=workdir, **options)


FEEDS = {"encoded": "", "cached": "embeddings"}


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
  """A whole run of each kind."""
  workdirs = {feed: tmp_path_factory.mktemp(feed) for feed in FEEDS}
  for feed, workdir in workdirs.items():
    sheets = STEPS if feed == "encoded" else 0  # of one kind: each costs a program
    run(experiment(root, embeddings=FEEDS[feed], sheet_every=sheets), root, workdir)
  return workdirs


def losses(workdir, name="loss"):
  return np.array([line[name] for line in lines(workdir / "train.jsonl") if name in line])


def first_batch(one, root, workdir):
  data = open_it(one, root, workdir)
  try:
    return {name: np.asarray(array) for name, array in next(data).items()}
  finally:
    data.close()


@pytest.fixture(scope="module")
def batches(root, tmp_path_factory):
  """The first batch of each kind."""
  workdir = tmp_path_factory.mktemp("batches")
  return {
    feed: first_batch(experiment(root, embeddings=e), root, workdir) for feed, e in FEEDS.items()
  }


def test_a_cache_gives_what_the_encoders_give(batches):
  """But for float32 sums in another order, which few of them show as one step of bfloat16."""
  encoded, cached = (batches[feed] for feed in FEEDS)
  assert set(encoded) == set(cached)
  for name in set(encoded) - set(LENGTHS):
    np.testing.assert_array_equal(encoded[name], cached[name])
  for name in LENGTHS:
    ours, theirs = encoded[name], cached[name]
    assert ours.dtype == theirs.dtype == np.float32 and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-6)
    assert np.mean(ours != theirs) < 0.005
    mask = encoded[f"{name}_mask"]
    assert not ours[~mask].any() and 0 < mask.sum() < mask.size
    dropped = ~mask.any(axis=1)
    assert 0 < dropped.sum() < BATCH  # the null caption is no token at all, as in guidance
    np.testing.assert_array_equal(dropped, encoded["text_mask"].sum(axis=1) == 1)


def test_two_processes_encode_the_batches_of_one(batches, root, tmp_path):
  """Each gets the rows of its devices; examples are whole, and the same, on both."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  here = Path(__file__).parent
  environment = {
    **os.environ, "COORDINATOR": address,
    "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parent / "inputs"))),
  }  # fmt: skip
  running = [
    subprocess.Popen(
      [sys.executable, here / "run_encoded.py", root, tmp_path],
      env={**environment, "PROCESS": str(process)}, stderr=subprocess.PIPE, text=True,
    )
    for process in range(2)
  ]  # fmt: skip
  try:
    errors = [process.communicate(timeout=300)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
  parts = [np.load(tmp_path / f"{process}.npz") for process in range(2)]
  data = open_it(experiment(root), root, tmp_path)
  alone = {"batch": batches["encoded"], "held_out": data.held_out(1)[0]}
  examples = data.examples(2)
  data.close()
  assert examples is not None
  for part, arrays in alone.items():
    for name, array in arrays.items():
      both = np.concatenate([made[f"{part}/{name}"] for made in parts])
      np.testing.assert_allclose(both, array, rtol=2**-7, atol=1e-6, err_msg=f"{part}/{name}")
  for name, array in examples.items():
    for made in parts:
      np.testing.assert_allclose(made[f"examples/{name}"], array, rtol=2**-7, atol=1e-6)


def test_a_dropped_caption_is_what_guidance_calls_none(batches, root):
  one, batch = experiment(root), batches["encoded"]
  stage: Any = make_stage(one.stage.name, one.stage.fields)
  null = stage.text.without({name: jnp.asarray(array) for name, array in batch.items()})
  dropped = ~batch["t5_mask"].any(axis=1)
  for name in LENGTHS:
    np.testing.assert_array_equal(batch[f"{name}_mask"][dropped], null[f"{name}_mask"][dropped])


def test_training_with_a_cache_equals_training_without(runs):
  """Their embeddings differ in a bit here and there (see above), so the losses do by about 1e-6."""
  encoded, cached = (losses(runs[feed]) for feed in FEEDS)
  assert len(encoded) == STEPS and np.ptp(encoded) > 1e-3
  np.testing.assert_allclose(encoded, cached, rtol=1e-5)
  held_out = [losses(runs[feed], "held_out_loss") for feed in FEEDS]
  assert len(held_out[0]) == 2
  np.testing.assert_allclose(*held_out, rtol=1e-5)


def test_embeddings_of_the_same_padded_batches_are_the_same_bits(
  batches, root, tmp_path, monkeypatch
):
  """Texts padded to the full length, eight at a time on eight devices, as training encodes them.

  Then a step, a function of its batch, is the same to the last bit, too.
  """
  monkeypatch.setattr(embed, "SHORTEST", max(LENGTHS.values()))
  full = str(tmp_path / "full")
  for name in LENGTHS:
    assert main(embed_arguments(root / "data", root, name, "--out", full)) == 0
  cached = first_batch(experiment(root, embeddings=full), root, tmp_path)
  for name, array in batches["encoded"].items():
    np.testing.assert_array_equal(array, cached[name])


def test_a_stopped_run_goes_on_as_if_it_had_not_been(root, runs, tmp_path):
  run(experiment(root, steps=2), root, tmp_path)
  shutil.copytree(root / "encoders" / "t5", tmp_path / "moved")  # where it lies does not matter
  moved = experiment(root, t5={"folder": str(tmp_path / "moved")})
  run(moved, root, tmp_path)
  mine, straight = (digests(path, STEPS) for path in (tmp_path, runs["encoded"]))
  assert {k: mine[k] for k in ("params", "ema", "optimizer")} == {
    k: straight[k] for k in ("params", "ema", "optimizer")
  }
  assert losses(tmp_path).tolist() == losses(runs["encoded"]).tolist()


@pytest.mark.parametrize("feed", FEEDS)
def test_a_position_in_the_data_comes_back(feed, root, tmp_path):
  one = experiment(root, embeddings=FEEDS[feed])
  straight, again = open_it(one, root, tmp_path), open_it(one, root, tmp_path)
  next(straight)
  again.set_state(straight.get_state(), changed=False)
  ours, theirs = next(again), next(straight)
  for name in ours:
    np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]))
  assert again.get_state() == straight.get_state()
  for data in (straight, again):
    data.close()


def test_another_encoder_is_refused_by_a_run_that_goes_on(root, runs, tmp_path):
  write_encoder(tmp_path / "other", "t5", seed=1)
  one = experiment(root, steps=STEPS + 1, t5={"folder": str(tmp_path / "other")})
  shutil.copytree(runs["encoded"], tmp_path / "run")
  with pytest.raises(CheckpointError, match=r"data\.encoders\.t5\.encoder: .* -> "):
    run(one, root, tmp_path / "run")


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"length": 40}, "length: 48 -> 40"),
    ({"prefix": "[S2S] "}, "tokenizer: .* -> "),
    ({"reads": "quoted"}, "reads: 'caption' -> 'quoted'"),
    ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
    ({"folder": "OTHER"}, "encoder: .* -> "),
  ],
)
def test_a_cache_that_something_else_made_is_refused(change, match, root, tmp_path):
  if "folder" in change:
    change = {"folder": str(write_encoder(tmp_path / "other", "t5", seed=1))}
  with pytest.raises(DataError, match=rf"embeddings/t5: .*{match}"):
    open_it(experiment(root, embeddings="embeddings", t5=change), root, tmp_path)


def test_a_cache_is_trained_on_without_its_encoder(batches, root, tmp_path):
  gone = {n: {"folder": ""} for n in LENGTHS}
  batch = first_batch(experiment(root, embeddings="embeddings", **gone), root, tmp_path)
  np.testing.assert_array_equal(batch["t5"], batches["cached"]["t5"])


def test_a_config_without_a_folder_or_a_cache_is_refused(root):
  with pytest.raises(ConfigError, match="encoders.t5: needs a folder"):
    experiment(root, t5={"folder": ""})


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
  ("streams", "match"),
  [
    ({"t5": {"width": 24, "length": 40}}, "48 tokens of width 24, where the stage reads 40 x 24"),
    ({"t5": {"width": 32, "length": 48}}, "48 tokens of width 24, where the stage reads 48 x 32"),
    ({"t6": {"width": 24, "length": 48}}, "t5: the stage reads no such stream; it reads .* t6,"),
  ],
)
def test_streams_that_the_stage_does_not_read_so_are_refused_at_the_start(
  streams, match, feed, root, tmp_path, monkeypatch
):
  """Before the weights of any encoder are loaded."""
  monkeypatch.setattr("vidgen.train.encoded.open_encoder", None)
  one = experiment(root, embeddings=FEEDS[feed])
  others = {name: spec for name, spec in FIELDS["text_streams"].items() if name != "t5"}
  fields = {**one.stage.fields, "text_streams": streams | others}
  one = dataclasses.replace(one, stage=dataclasses.replace(one.stage, fields=fields))
  with pytest.raises(ConfigError, match=match):
    open_it(one, root, tmp_path)


def test_a_config_says_what_to_embed_and_is_refused_where_the_stage_reads_otherwise(
  root, tmp_path, capsys
):
  """Before hours go into embeddings that no training takes."""
  whole = plain(experiment(root))
  for length, prefix, code in ((LENGTHS["t5"], (), 0), (LENGTHS["t5"], ("fps",), 0), (40, (), 2)):
    whole["inputs"]["encoders"]["t5"]["length"] = length
    whole["inputs"]["prefix"] = list(prefix)
    config = tmp_path / f"{length}.py"
    config.write_text(
      "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
      f"  return ConfigDict(json.loads({json.dumps(whole)!r}))\n"
    )
    words = ["--config", str(config), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["data", "embed", str(root / "data"), *words]) == code
  printed = capsys.readouterr()
  assert "t5: " in printed.out and "clip: " in printed.out
  assert "t5/FPS-" in printed.out  # of captions behind the rate
  assert "40 tokens of width 24, where the stage reads 48 x 24" in printed.err


def test_the_step_is_measured_with_encoders(root, tmp_path):
  one = experiment(root)
  source = step.data_of(one, str(root / "data"))(
    SimpleNamespace(mesh=make_mesh(one.mesh)), str(tmp_path)
  )
  rate, batch = step._data_rate(source, count=1)
  source.close()
  assert rate > 0 and batch["t5"].shape == (BATCH, LENGTHS["t5"], WIDTHS["t5"])


def test_the_data_set_is_sound_with_embeddings_in_it(root):
  report = check_dataset(root / "data", processes=1)
  assert report["bad"] == [] and set(report["subsets"]) == {"video/train", "video/held_out"}


def test_encoding_on_a_mesh_is_encoding_on_one_device(root):
  one = experiment(root)
  source = one.inputs.encoders["t5"]
  captions = ["a red circle", "a blue square moves left", "", "x"]
  alone = open_encoder("t5", source).of_captions(captions, batch_size=8)
  spread = open_encoder("t5", source, mesh=make_mesh(one.mesh)).of_captions(captions, batch_size=8)
  np.testing.assert_array_equal(alone["t5_mask"], spread["t5_mask"])
  np.testing.assert_allclose(alone["t5"], spread["t5"], rtol=2**-7, atol=1e-6)
  assert jax.device_count() == 8


def test_prompts_are_sampled_by_the_encoders_of_training(root, runs, tmp_path):
  assert list((runs["encoded"] / "sheets").iterdir())
  (tmp_path / "prompts.txt").write_text("a red circle moves left\na blue square\n")
  command = ["sample", "--workdir", str(runs["cached"]), "--prompts", str(tmp_path / "prompts.txt")]
  assert main([*command, "--out", str(tmp_path / "out")]) == 0
  assert (tmp_path / "out" / "00001.mp4").is_file()
  records = lines(tmp_path / "out" / "samples.jsonl")
  assert [record["cut"] for record in records] == [False, False]
  write_encoder(tmp_path / "other", "t5", seed=1)
  other = [*command, "--out", str(tmp_path / "two"), "--encoder", f"t5={tmp_path / 'other'}"]
  assert main(other) == CheckpointError.exit_code
  assert main([*command, "--out", str(tmp_path / "two"), "--encoder", "t5"]) == 2
  assert main([*command, "--out", str(tmp_path / "two"), "--encoder", "t6=x"]) == 2


def test_what_makes_the_text_is_on_record(runs, root):
  config = json.loads((runs["encoded"] / "config.json").read_text())
  assert config["inputs"]["encoders"]["t5"]["length"] == LENGTHS["t5"]

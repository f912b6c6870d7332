"""Imagen Video's first three models, small and untrained, from prompts to clips of three sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vidgen.cli import main
from vidgen.config import plain
from vidgen.evals.samples import read_samples
from vidgen.inputs.storage import file_sha256
from vidgen.systems import make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import resolve

SHAPES = {"base": (16, 3, 5), "tsr1": (32, 3, 5), "ssr1": (32, 6, 10)}  # frames, height, width
FPS = {"base": 3.0, "tsr1": 6.0, "ssr1": 6.0}
ROLES = {"base": ("base", 1), "tsr1": ("temporal", 2), "ssr1": ("spatial", 2)}


def write_run(folder, name):
  """A checkpoint of random parameters, none of them zero."""
  frames, height, width = SHAPES[name]
  role, factor = ROLES[name]
  bucket = {"name": "video", "frames": frames, "height": height, "width": width}
  fields = {
    "role": role, "factor": factor,
    "network": {
      "levels": [{"channels": 8, "blocks": 1, "attention": "cross"}], "head_size": 8, "groups": 0,
      "temporal": "attention" if role == "base" else "convolution", "scan": False,
    },
    "sampler": {"method": "ddim"},
    "text_streams": {}, "text_encoder": {"length": 32, "words": 8, "width": 16},
    "buckets": [bucket], "dtype": "float32", "remat": "none",
  }  # fmt: skip
  experiment = resolve(
    ConfigDict(
      {
        "name": name,
        "stage": {"name": "imagen_video", "fields": fields},
        "inputs": {"buckets": [{**bucket, "fps": FPS[name]}], "text_length": 32},
        "train": {"batch_size": 8},
        "rules": [["batch", ["data", "fsdp"]], ["rows", "context"], ["embed", "fsdp"]],
        "sample": {"steps": 2, "guidance_scale": 2.0, "schedule": "linear"},
      }
    )
  )
  shapes = jax.eval_shape(
    make_stage("imagen_video", experiment.stage.fields).init, jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes)
  state = {"params": params, "ema": params, "opt_state": {}, "step": jnp.int32(5)}
  checkpoints = Checkpoints(folder / name / "checkpoints")
  checkpoints.save(5, state, {"position": 5}, plain(experiment))
  checkpoints.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  for name in SHAPES:
    write_run(folder, name)
  (folder / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(3)))
  return folder


def chain(runs, out, *more, names=tuple(SHAPES)):
  places = [runs / name for name in names]
  arguments = ["cascade", "--runs", *places, "--prompts", runs / "prompts.txt", "--out", out, *more]
  return main([str(argument) for argument in [*arguments, "--json", out.with_suffix(".json")]])


def contents(out):
  return {
    path.relative_to(out).as_posix(): file_sha256(path) for path in out.rglob("*") if path.is_file()
  }


def test_prompts_become_clips_of_exactly_the_cascades_shapes(runs, tmp_path):
  """By batches and stage by stage with the same bytes; what is gone is made again, nothing else."""
  out = tmp_path / "out"
  assert chain(runs, out) == 0
  for number, (name, shape) in enumerate(SHAPES.items()):
    found = read_samples(out / f"{number}_{name}")
    assert len(found.records) == 3
    for record, video in zip(found.records, found.videos(), strict=True):
      assert video.frames is not None and video.frames.shape == (*shape, 3)
      assert record.fps == FPS[name]
  whole = contents(out)
  assert chain(runs, tmp_path / "stages", "--stage-by-stage") == 0
  assert contents(tmp_path / "stages") == whole
  for gone in ("1_tsr1/latents/00002.npy", "2_ssr1/samples.jsonl", "2_ssr1/00000.mp4"):
    (out / gone).unlink()
  assert chain(runs, out) == 0
  assert contents(out) == whole
  summary = json.loads((tmp_path / "out.json").read_text())
  assert [stage["reused"] for stage in summary["stages"]] == [3, 2, 3]


def test_models_that_do_not_follow_each_other_are_refused(runs, tmp_path, capsys):
  assert chain(runs, tmp_path / "out", names=("base", "ssr1")) == 2
  message = "base makes clips of 16 x 3 x 5, ssr1 wants 32 x 3 x 5"
  assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rows_spread_over_devices_make_the_same_clips(runs, tmp_path):
  """Rows over 2 devices, though there are 3 and then 6, and over as many as there are for none."""
  assert chain(runs, tmp_path / "one") == 0
  assert chain(runs, tmp_path / "spread", "--context", "2", "--batch-size", "2") == 0
  for number, name in enumerate(SHAPES):
    for i in range(3):
      file = f"{number}_{name}/latents/{i:05d}.npy"
      one, spread = (np.load(tmp_path / out / file) for out in ("one", "spread"))
      np.testing.assert_allclose(spread, one, atol=1e-5)
  assert chain(runs, tmp_path / "never", "--context", "3") == 2  # of 8 devices

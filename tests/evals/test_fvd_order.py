"""Clips that are blurred, shuffled, frozen or noisy are farther from real ones than real ones."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from fixtures.random_weights import draw

from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors import PixelExtractor
from vidgen.evals.scoring import Session
from vidgen.evals.settings import Settings

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "fvd_order.py"
COUNT = 32


def small_network():
  """Strengths of random edges, and of their changes in time, in place of I3D."""
  kernel = draw("edges", (5, 5, 3, 12), scale=75**-0.5)
  kernel -= kernel.mean(axis=(0, 1))

  def run(params, clips):
    b, t, h, w, c = clips.shape
    frames = clips.reshape(b * t, h, w, c).astype(jnp.float32) / 127.5 - 1
    dims = ("NHWC", "HWIO", "NHWC")
    edges = jax.lax.conv_general_dilated(frames, params, (2, 2), "SAME", dimension_numbers=dims)
    edges = jnp.abs(edges).reshape(b, t, h // 2, w // 2, -1)
    changes = jnp.abs(jnp.diff(edges, axis=1))
    found = [x.mean(axis=(1, 2, 3)) for x in (edges, changes)]
    return {"logits": jnp.concatenate(found, axis=-1)}

  return PixelExtractor("i3d", "small", jax.jit(run), kernel, {"value_range": [-1.0, 1.0]}, 8, 5)


def test_every_corruption_of_real_clips_is_seen(tmp_path):
  script = runpy.run_path(str(SCRIPT))
  clips = script["real_clips"](2 * COUNT, frames=10, side=32, seed=0)
  reference = script["write"](tmp_path / "first", clips[:COUNT])
  values = {}
  for name, corrupt in script["CORRUPTIONS"].items():
    settings = Settings(
      samples=script["write"](tmp_path / name, corrupt(clips[COUNT:])), reference=reference,
      clip=ClipRule(frames=10, sequence_fps=8.0), allow_small=True, cache=tmp_path / "cache",
      extractors={"i3d": small_network()},
    )  # fmt: skip
    values[name] = Session(settings, ["fvd"]).score("fvd").values["fvd"]
  clean = values.pop("clean")
  assert clean > 0
  assert min(values.values()) > 1.5 * clean, (clean, values)


@pytest.mark.soak
def test_a_random_i3d_sees_every_corruption(tmp_path):
  out = tmp_path / "out.json"
  command = [sys.executable, str(SCRIPT), "--count", "24", "--json", str(out)]
  subprocess.run(command, check=True, timeout=3600)
  values = {name: row["fvd"] for name, row in json.loads(out.read_text())["values"].items()}
  clean = values.pop("clean")
  assert min(values.values()) > 1.1 * clean, (clean, values)

"""Plans of frozen text encoders for devices that are not there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vidgen.cli import main
from vidgen.dist.topology import parse_topology
from vidgen.errors import ConfigError
from vidgen.models.t5 import T5Encoder, t5_flops
from vidgen.train import encoder_plan
from vidgen.train.encoder_plan import plan_encoder

ROOT = Path(__file__).resolve().parents[2]
SMALL = T5Encoder(64, 64, 2, 4, 16, 128)


def test_an_encoder_is_compiled_as_it_lies_over_all_devices(monkeypatch):
  """Eight CPU devices in the place of absent ones, so that it runs without their compiler."""
  monkeypatch.setattr(encoder_plan, "absent_devices", lambda topology: jax.devices())
  monkeypatch.setattr("vidgen.train.plan.places_of", lambda devices, device: {})
  monkeypatch.setattr("vidgen.train.plan.communication", lambda *_, **__: {})
  plan = plan_encoder(
    "small", parse_topology("v5e:2x4"), length=16, batch_size=16, sizes={"small": SMALL}
  )
  count = sum(
    p.size for p in jax.tree.leaves(jax.eval_shape(SMALL.init, jax.random.key(0), *SMALL.example()))
  )
  assert plan.fits and plan.devices == 8 and plan.mesh["fsdp"] == 8
  assert plan.parameters == count
  assert plan.model_flops == plan.executed_flops == t5_flops(SMALL, length=16, batch=16)
  # bfloat16, an eighth of all but the norms and the table of positions
  assert 2 * count / 8 < plan.state_bytes_per_device["parameters"] < 2 * count / 7
  assert plan.attention == {"16 x 16 tokens, 4 heads of 16": "dense, with a bias"}


def test_what_cannot_be_planned_is_refused(monkeypatch):
  topology = parse_topology("v5e:2x4")
  with pytest.raises(ConfigError, match="--encoder 'bert': known are t5_v1_1_xl, t5_v1_1_xxl"):
    plan_encoder("bert", topology, length=16)
  monkeypatch.setattr(encoder_plan, "absent_devices", lambda topology: jax.devices())
  with pytest.raises(ConfigError, match="batch of 12 does not divide over 8 devices"):
    plan_encoder("small", topology, length=16, batch_size=12, sizes={"small": SMALL})


@pytest.mark.parametrize(
  ("words", "match"),
  [
    (["--length", "0"], "at least 1"),
    (["--length", "16", "--batch-size", "0"], "at least 1"),
    (["--config", "configs/movie_gen/t2v_256.py"], "without a --config"),
    (["--length", "16", "--sweep"], "has no --sweep"),
    (["--length", "16", "--program", "sample"], "--program or --effort"),
    (["train.steps=3"], "nothing overrides it"),
  ],
)
def test_arguments_that_would_be_ignored_are_refused(words, match, capsys):
  assert main(["plan", "--encoder", "byt5_small", *words]) == 2
  assert match in capsys.readouterr().err


def test_the_command_line_plans_byt5_for_a_slice(tmp_path):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("its compiler is not installed (make compilers)")
  out = tmp_path / "plan.json"
  words = ["--encoder", "byt5_small", "--topology", "v5e:2x2", "--length", "16", "--json", out]
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-m", "vidgen.cli", "plan", *map(str, words)],
    capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  plan = json.loads(out.read_text())
  assert plan["fits"] and plan["program"] == "encode" and plan["batch_size"] == 4
  # 217,657,472 parameters in bfloat16 over four devices, and the norms on each
  assert plan["state_bytes_per_device"]["parameters"] < 217_657_472 * 2 / 4 * 1.02

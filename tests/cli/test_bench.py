"""`vidgen bench`: the record that every kind writes, and what is refused."""

import json

import pytest

from vidgen.cli import main
from vidgen.cli.bench import TINY, record
from vidgen.config import load_config, parse_overrides
from vidgen.models.movie_gen_dit import MovieGenDiT, forward_flops
from vidgen.systems import make_stage
from vidgen.train.experiment import resolve

SMALL = [
  "--config.stage.fields.layers=1",
  "--config.stage.fields.scan_unroll=1",
  "--config.stage.fields.width=16",
  "--config.stage.fields.heads=2",
  "--config.stage.fields.mlp_width=16",
  "--config.stage.fields.text_encoder.width=16",
  "--config.stage.fields.text_encoder.mlp_width=16",
  "--config.train.optimizer.name=adamw",
  "--config.train.batch_size=8",
]
NETWORK = ["--width", "16", "--heads", "2", "--tokens", "8", "--warmup", "1", "--repeats", "4"]


def figures_of(tmp_path, *arguments):
  out = tmp_path / "new" / "bench.json"
  assert main(["bench", *arguments, "--json", str(out)]) == 0
  return json.loads(out.read_text())


def test_a_record_says_where_and_with_what_it_was_measured(tmp_path):
  figures = figures_of(tmp_path, "attention", *NETWORK)
  assert figures["kind"] == "attention" and figures["devices"] == 8  # those of the tests
  assert figures["hardware"]["platform"] == "cpu" and figures["hardware"]["cores"] >= 1
  assert {"python", "vidgen", "jax", "jaxlib", "flax"} <= set(figures["versions"])
  assert figures["peak_host_bytes"] > 2**26 and figures["peak_device_bytes"] is None


def test_attention_counts_two_products_forward_and_four_more_back(tmp_path):
  measures = figures_of(tmp_path, "attention", *NETWORK, "--batch-size", "3")["measures"]
  flops = 2 * 2 * 3 * 8 * 8 * 16
  assert measures["forward"]["model_flops"] == flops
  assert measures["with gradient"]["model_flops"] == 3 * flops
  for found in measures.values():
    assert found["count"] == 4 and found["compile_seconds"] > 0
    low, high = found["quartile_seconds"]
    assert 0 < found["least_seconds"] <= low <= found["median_seconds"] <= high
    rate = found["model_flops"] / found["median_seconds"]
    assert found["model_flops_per_second"] == rate and "mfu" not in found  # a CPU has no peak here


def test_the_kernel_asked_for_is_the_one_measured(tmp_path):
  figures = figures_of(tmp_path, "attention", *NETWORK, "--kernel", "flash")
  assert figures["attention"] and all("flash" in how for how in figures["attention"].values())


def test_block_is_the_network_of_the_sizes_given(tmp_path):
  sizes = ["--mlp-width", "24", "--layers", "2", "--text-tokens", "4", "--remat", "full"]
  figures = figures_of(tmp_path, "block", *NETWORK, *sizes)
  network = MovieGenDiT(
    channels=16, layers=2, width=16, heads=2, mlp_width=24, text_widths={"text": 16},
    patch=(1, 1, 1), max_grid=(8, 1, 1),
  )  # fmt: skip
  flops = forward_flops(network, grid=(8, 1, 1), text_lengths={"text": 4})
  assert figures["measures"]["forward"]["model_flops"] == flops
  assert figures["sizes"]["layers"] == 2 and figures["sizes"]["remat"] == "full"
  # a layer: eight projections and three of the MLP, a table of six vectors, two norms
  layer = 8 * 16 * 16 + 3 * 16 * 24 + 6 * 16 + 2 * 16
  assert 2 * layer < figures["sizes"]["parameters"] < 3 * layer + 16 * (8 + 4 * 64 + 7 * 16)


def test_sampler_counts_both_passes_of_guidance_at_every_step(tmp_path):
  settings = ["--config.sample.steps=3", "--config.sample.guidance_scale=4.0", *SMALL]
  options = ["--batch-size", "8", "--warmup", "1", "--repeats", "2"]
  figures = figures_of(tmp_path, "sampler", *options, *settings)
  fields = resolve(load_config(TINY, parse_overrides(SMALL))).stage.fields
  stage = make_stage("movie_gen/t2v", fields)
  found = figures["measures"]["sample"]
  assert found["model_flops"] == 2 * 3 * stage.flops(stage.batch_spec(8))
  assert figures["samples_per_second"] == 8 / found["median_seconds"]


def test_loader_tells_decoding_from_the_cache(tmp_path, monkeypatch):
  monkeypatch.setattr("vidgen.cli.bench.loader.CLIPS", 8)
  options = ["--warmup", "4", "--repeats", "6", "--config.train.batch_size=8"]
  figures = figures_of(tmp_path, "loader", *options)
  assert set(figures["measures"]) == {"decoding", "cached"}
  for found in figures["measures"].values():
    assert found["count"] == 6 and found["samples_per_second"] == 8 / found["mean_seconds"]
  alone = figures_of(tmp_path, "loader", *options, "--config.inputs.cache_bytes=0")
  assert set(alone["measures"]) == {"decoding"}


def test_checkpoint_weighs_a_state_that_does_not_compress(tmp_path):
  figures = figures_of(tmp_path, "checkpoint", "--repeats", "2", *SMALL)
  measures = figures["measures"]
  assert {name: found["count"] for name, found in measures.items()} == {
    "blocked": 2, "durable": 2, "restore": 2,
  }  # fmt: skip
  assert measures["blocked"]["median_seconds"] < measures["durable"]["median_seconds"]
  assert figures["sizes"]["bytes_on_disk"] > 0.8 * figures["sizes"]["state_bytes"]


def test_utilisation_is_of_the_peak_of_all_devices():
  found = record.speed(6e12, 2.0, devices=3, peak=2e12)
  assert found["model_flops_per_second"] == 3e12 and found["mfu"] == 0.5
  assert "mfu" not in record.speed(6e12, 2.0, devices=3, peak=None)


def test_warm_up_is_not_timed():
  calls = []
  assert len(record.timed(lambda: calls.append(0), warmup=3, repeats=5)) == 5
  assert len(calls) == 8


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["attention", "--layers", "2"], "--layers is no option of `vidgen bench attention`"),
    (["attention", "--config.train.seed=1"], "attention takes no config"),
    (["attention", "--tokens", "0"], "--tokens must be at least 1"),
    (["block", "--width", "10", "--heads", "4"], "--width 10 is not a multiple of --heads 4"),
    (["block", "--remat", "some"], "--remat 'some' is not one of none, full"),
    (["step", "--steps", "5"], "--steps must be at least"),
    (["--warmup", "2"], "--warmup must be at least 3"),
  ],
)
def test_what_makes_no_sense_is_refused(arguments, message, capsys):
  assert main(["bench", *arguments]) == 2
  assert message in capsys.readouterr().err

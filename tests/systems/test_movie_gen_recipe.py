"""The stages of Movie Gen's pre-training: the paper's Table 3, and what it costs by our plans."""

import json
from pathlib import Path

import pytest

from vidgen.cli.recipe_cost import cost_table, recipe_costs
from vidgen.config import load_config, plain
from vidgen.errors import ConfigError
from vidgen.models.movie_gen_dit import forward_flops
from vidgen.systems import make_stage
from vidgen.train.experiment import resolve

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "movie_gen"
RECIPE = CONFIGS / "recipe.json"
ROWS = json.loads(RECIPE.read_text())


def experiment_of(row):
  return resolve(load_config(f"{CONFIGS}/{row['config']}"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["stage"])
def test_inf_3_the_batch_is_that_of_the_papers_devices_and_the_samples_follow(row):
  train = experiment_of(row).train
  assert train.batch_size == row["per_device"] * row["devices"] / (row["tensor"] * row["context"])
  assert train.steps * train.batch_size == pytest.approx(row["samples"], rel=0.02)


def test_inf_3_the_totals_are_the_papers():
  totals = {}
  for row in ROWS:
    train, (side, *_) = experiment_of(row).train, row["stage"].split(", ")
    steps, samples = totals.get(side, (0, 0))
    totals[side] = steps + train.steps, samples + train.steps * train.batch_size
  assert totals["256 T2I"][0] == 210_000
  assert totals["256 T2I/V"][0] == 185_000
  assert totals["256 T2I/V"][1] / 1e6 == pytest.approx(394.8, abs=0.1)
  assert totals["768 T2I/V"][0] == 74_500
  assert totals["768 T2I/V"][1] / 1e6 == pytest.approx(73.8, rel=0.005)


def test_rates_fall_and_position_tables_grow_along_the_recipe():
  experiments = [experiment_of(row) for row in ROWS]
  rates = [e.train.optimizer.learning_rate for e in experiments]
  assert rates == [1e-4, 6e-5, 6e-5, 6e-5, 3e-5, 2e-5, 1e-5]
  grids = [tuple(e.stage.fields["max_grid"]) for e in experiments]
  assert grids == [(32, 16, 16)] + 2 * [(32, 32, 32)] + 4 * [(32, 96, 96)]


def test_inf_6_a_token_of_73_728_takes_137_707_gigaflops():
  config = load_config(f"{CONFIGS}/t2v_768.py:30b")
  network = make_stage(config.stage.name, plain(config.stage.fields)).network
  no_text = dict.fromkeys(network.text_widths, 0)
  tokens = 32 * 48 * 48
  found = forward_flops(network, grid=(32, 48, 48), text_lengths=no_text) / tokens
  patches = 2 * 2 * 64 * 6144  # in and out: left out of that figure
  assert (found - patches) / 1e9 == pytest.approx(137.707, abs=5e-4 + 0.002)


def test_the_cost_is_the_sum_of_the_plans_on_record():
  costs = recipe_costs(RECIPE)
  assert [c.config for c in costs] == [row["config"] for row in ROWS]
  for c in costs:
    file, _, variant = c.config.partition(":")
    plans = json.loads((CONFIGS / file.replace(".py", ".plans.json")).read_text())
    own = [e["plan"] for e in plans if e["variant"] == variant and not e["overrides"]]
    plan = next(p for p in own if p["topology"] == c.topology and p["program"] == "train")
    assert plan["fits"]
    assert c.device_hours == plan["roofline_seconds"] * c.steps * plan["devices"] / 3600
    assert 0.4 < c.mix <= 1
    assert (c.mix == 1) == (c.stage == "256 T2I")  # which has one shape
  by_hand = sum(c.device_hours for c in costs)
  assert f"{by_hand:,.0f}" in cost_table(costs).splitlines()[-1]


def test_the_recipe_is_as_much_work_as_the_closed_form_says():
  """3 x 48 x (2 (6 d^2 + 3 d f) + 4 N d) a token, and text and embedders, which add 2% at most."""
  costs = recipe_costs(RECIPE)
  assert sum(c.flops for c in costs if c.stage.startswith("256 T2I/V")) == pytest.approx(
    5.9e23, rel=0.03
  )
  assert sum(c.flops for c in costs if c.stage.startswith("768")) == pytest.approx(
    2.25e24, rel=0.02
  )
  # of images of 256 tokens the 656 of text are more of the work
  assert 7.6e22 < costs[0].flops < 1.5 * 7.6e22


def test_the_bounds_are_what_the_recipe_asks_for():
  """At most: 55% of the peak with 8,192 tokens, 40% with 73,728."""
  for c in recipe_costs(RECIPE):
    assert c.mfu_bound >= (0.40 if c.stage.startswith("768") else 0.55), c.stage


def test_a_recipe_without_plans_is_refused(tmp_path):
  path = tmp_path / "recipe.json"
  path.write_text('[{"stage": "a"}]')
  with pytest.raises(ConfigError, match="entry 0 has no stage, config and samples"):
    recipe_costs(path)
  (tmp_path / "t2v_256.py").write_text((CONFIGS / "t2v_256.py").read_text())
  (tmp_path / "t2v_256.plans.json").write_text("[]")
  path.write_text('[{"stage": "a", "config": "t2v_256.py:30b", "samples": 1}]')
  with pytest.raises(ConfigError, match="no plan of 30b for v5p:4x4x8"):
    recipe_costs(path)

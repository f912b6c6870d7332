"""Experiments: complete, checked key by key, and the same after a trip through JSON."""

import copy
import json

import pytest
from ml_collections import ConfigDict

from vidgen.config import load_config, plain
from vidgen.errors import ConfigError
from vidgen.train.experiment import (
  OptimizerConfig,
  TrainConfig,
  completed,
  from_plain,
  moves_data,
  refused,
  resolve,
)

TINY = "configs/movie_gen/t2v_256.py:tiny"


def test_an_experiment_survives_json_and_is_complete():
  one = resolve(load_config(TINY))
  tree = json.loads(json.dumps(plain(one)))
  assert from_plain(tree) == one
  assert tree["train"]["optimizer"]["name"] == "muon" and "layers" in tree["stage"]["fields"]
  assert from_plain(tree).stage.fields == tree["stage"]["fields"]


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ({"train.batchsize": 3}, "config.train.batchsize: unknown key"),
    ({"train.optimizer.lr": 3}, "config.train.optimizer.lr: unknown key"),
    ({"stage.fields.depth": 3}, "config.stage.fields.depth: unknown key"),
    ({"inputs.worker": 3}, "config.inputs.worker: unknown key"),
    ({"trainer.steps": 3}, "config.trainer: unknown key"),
    ({"train.steps": "many"}, "config.train.steps: expected int"),
    ({"train.steps": 0}, "steps must be positive"),
    ({"train.batch_size": 10, "train.accumulate": 4}, "not a multiple of accumulate"),
    ({"train.ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
    ({"train.seed": -1}, "seed must lie"),
    ({"train.optimizer.name": "sgd"}, "is not one of adamw, adafactor, muon"),
    ({"train.optimizer.learning_rate": float("nan")}, "not a finite number"),
    ({"train.optimizer.frozen": ["("]}, "no regular expression"),
    ({"mesh.data": -1, "mesh.fsdp": -1}, "only one axis"),
    ({"stage.name": "movie_gen/t3v"}, "unknown stage"),
  ],
)
def test_a_bad_key_is_named(override, message):
  with pytest.raises(ConfigError, match=message):
    resolve(load_config(TINY, override))


def test_defaults_are_valid():
  TrainConfig()
  OptimizerConfig()
  with pytest.raises(ConfigError, match="config.name: missing"):
    resolve(ConfigDict({}))


LINES = ["name: 'a' -> 'b'", "train.seed: 0 -> 1", "train.steps: 5 -> 6", "inputs.buckets: 1 -> 2"]


def test_what_moves_no_parameter_may_change_freely():
  assert refused(LINES, allowed=()) == ["train.seed: 0 -> 1", "inputs.buckets: 1 -> 2"]
  assert refused(LINES, allowed=("train.seed",)) == ["inputs.buckets: 1 -> 2"]
  assert refused(LINES, allowed=("inputs",)) == ["train.seed: 0 -> 1"]
  assert refused(LINES, allowed=("all",)) == []
  assert refused(LINES, allowed=("train.see",)) == refused(LINES, allowed=())


@pytest.mark.parametrize(
  ("key", "moves"),
  [
    ("all", True), ("data", True), ("data.train", True), ("inputs", True), ("train", True),
    ("inputs.buckets[0].frames", True), ("train.batch_size", True), ("train.seed", True),
    ("train.ema_decay", False), ("train.batch", False), ("stage", False), ("mesh", False),
  ],
)  # fmt: skip
def test_only_changes_of_what_is_fed_accept_another_data_position(key, moves):
  assert moves_data(key) == moves


def test_the_watchdog_can_be_off_but_not_negative():
  assert TrainConfig(hang_seconds=0.0).hang_seconds == 0
  with pytest.raises(ValueError, match="hang_seconds must not be negative"):
    TrainConfig(hang_seconds=-1.0)


def test_a_config_from_before_a_field_was_added_is_completed():
  now = json.loads(json.dumps(plain(resolve(load_config(TINY)))))
  before = copy.deepcopy(now)
  del before["train"]["ema_dtype"], before["attention"], before["stage"]["fields"]["sigma_min"]
  assert json.loads(json.dumps(completed(before))) == now
  gone = {**now, "train": {**now["train"], "forgotten": 1}}
  assert completed(gone) == gone

"""The shipped recipes of Movie Gen Video."""

from pathlib import Path

import pytest

from vidgen.config import load_config, plain
from vidgen.systems import make_stage
from vidgen.train.experiment import from_plain, resolve

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "movie_gen"


@pytest.mark.parametrize("file", ["t2v_256", "t2v_768"])
@pytest.mark.parametrize("variant", ["1b", "5b", "30b", "tiny"])
def test_a_shipped_config_resolves_and_its_two_halves_agree(file, variant):
  """The input pipeline makes the shapes that the stage eats; its JSON form is the same config."""
  experiment = resolve(load_config(f"{CONFIGS}/{file}.py:{variant}"))
  assert from_plain(plain(experiment)) == experiment
  model = make_stage(experiment.stage.name, experiment.stage.fields)
  sides = ("name", "frames", "height", "width")
  made, eaten = (
    [tuple(getattr(bucket, side) for side in sides) for bucket in buckets]
    for buckets in (experiment.inputs.buckets, model.config.buckets)
  )
  assert made == eaten
  if model.config.text_encoder is not None:
    assert experiment.inputs.text_length == model.config.text_encoder.length

"""Scores of different protocols are not compared, whatever differs."""

import dataclasses
import json

import pytest

from vidgen.config import plain
from vidgen.errors import ConfigError, DataError
from vidgen.evals.protocol import Protocol, Score, compare, score_from_plain, source_digest

PROTOCOL = Protocol(
  metric="m", extractor="e", extractor_version="1", extractor_digest="d", height=16, width=16,
  frames=8, fps=4.0, count=10, missing=0, reference="r", quantisation="uint8",
  value_range=(0.0, 255.0), samples="s",
)  # fmt: skip
OTHER = {str: "other", int: 99, float: 9.5, tuple: (-1.0, 1.0), dict: {"resize": "other"}}


def test_equal_protocols_compare_though_samples_differ():
  old = Score({"a": 0.25}, PROTOCOL)
  new = Score({"a": 0.75}, dataclasses.replace(PROTOCOL, samples="others"))
  assert compare(old, new) == {"a": 0.5}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Protocol)])
def test_a_difference_in_any_other_field_is_refused_by_name(field):
  changed = dataclasses.replace(PROTOCOL, **{field: OTHER[type(getattr(PROTOCOL, field))]})
  old, new = Score({"a": 0.0}, PROTOCOL), Score({"a": 0.0}, changed)
  if field == "samples":
    assert compare(old, new) == {"a": 0.0}
  else:
    with pytest.raises(ConfigError, match=field):
      compare(old, new)


def test_a_difference_within_the_details_is_named():
  old, new = (
    Score({"a": 0.0}, dataclasses.replace(PROTOCOL, details={"resize": {"kernel": k}, "n_real": 5}))
    for k in ("bilinear", "bicubic")
  )
  with pytest.raises(ConfigError, match=r"details\.resize\.kernel: 'bilinear' -> 'bicubic'$"):
    compare(old, new)
  assert compare(old, old) == {"a": 0.0}


def test_other_values_are_refused():
  with pytest.raises(ConfigError, match="values"):
    compare(Score({"a": 0.0}, PROTOCOL), Score({"b": 0.0}, PROTOCOL))


def test_scores_survive_json_and_damage_is_named():
  score = Score({"a": 0.5}, PROTOCOL, ({"index": 0, "right": {"a": True}},))
  tree = json.loads(json.dumps(plain(score)))
  assert score_from_plain(tree) == score
  assert tree["protocol"].pop("details") == {}
  assert score_from_plain(tree) == score  # as it was written before there were details
  del tree["protocol"]["fps"]
  with pytest.raises(DataError, match="protocol.fps: missing"):
    score_from_plain(tree)


def test_the_source_digest_follows_the_source(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "probe_of_test.py").write_text("A = 1\n")
  before = source_digest("probe_of_test")
  assert before == source_digest("probe_of_test")
  (tmp_path / "probe_of_test.py").write_text("A = 2\n")
  assert before != source_digest("probe_of_test")

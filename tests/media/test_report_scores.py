"""Distances stand in a report as numbers, with every field of their record."""

from pathlib import Path

from vidgen.config import plain
from vidgen.evals.protocol import Protocol
from vidgen.media.report_scores import headline, scores_section
from vidgen.media.run_files import Quarantine, Run, Scored

PROTOCOL = Protocol(
  metric="fvd", extractor="i3d", extractor_version="1", extractor_digest="a" * 64, height=64,
  width=64, frames=16, fps=8.0, count=2048, missing=0, reference="b" * 64, quantisation="uint8",
  value_range=(-1.0, 1.0), samples="c" * 64,
  details={"resize": "tf1_bilinear", "n_real": 2048, "clip_seed": None,
           "front_end": {"mels": 64, "hop": 320}},
)  # fmt: skip


def run_with(*scores):
  return Run(
    directory=Path("run"), config=None, train=(), speed=(), quarantine=Quarantine(0, {}, {}),
    checkpoint=None, samples=None, scores=scores, missing={},
  )  # fmt: skip


def test_distances_are_numbers_and_details_are_rows():
  scored = Scored("fvd", {"fvd": 123.4}, plain(PROTOCOL), (), {"fvd": -1.5}, shares=False)
  page = str(scores_section(run_with(scored)))
  assert ">123.4<" in page and "%" not in page and ">-1.5<" in page
  assert '<th scope="col">fvd</th>' in page
  for row in ("<dt>resize</dt><dd>tf1_bilinear</dd>", "<dt>n real</dt><dd>2048</dd>",
              "<dt>front end</dt><dd>mels 64, hop 320</dd>",
              "<dt>value range</dt><dd>-1.0 to 1.0</dd>"):  # fmt: skip
    assert row in page, row
  assert "clip seed" not in page and "details</dt>" not in page
  head = headline([scored])
  assert head is not None
  assert (head.name, head.value, head.below) == ("fvd", "123.4", "of 2,048 samples, fvd")


def test_records_without_details_are_shown_as_before():
  tree = plain(PROTOCOL)
  del tree["details"]
  page = str(scores_section(run_with(Scored("old", {"a": 0.25}, tree, (), {}, shares=False))))
  assert "<dt>extractor</dt><dd>i3d</dd>" in page and ">0.25<" in page

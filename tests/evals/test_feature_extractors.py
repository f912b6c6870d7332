"""The frozen networks with their preprocessing, as metrics call them."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from conformance import Case, check
from fixtures.feature_inputs import FRAMES, picture_bytes, sampled
from safetensors.numpy import save_file

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.evals.extractors import Extractor, PixelExtractor, random_params
from vidgen.evals.extractors.c3d import c3d_extractor, load_c3d
from vidgen.evals.extractors.i3d import CONVENTIONS, i3d_extractor, load_i3d, prepared, random_i3d
from vidgen.evals.extractors.inception import inception_extractor, load_inception
from vidgen.evals.extractors.lpips import lpips_distance
from vidgen.interop.layout import to_theirs
from vidgen.interop.layouts.i3d import i3d_layout
from vidgen.models.i3d import I3D
from vidgen.models.lpips import LPIPS
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "feature_networks.npz")
ORACLES = ("reference", "videogpt", "stylegan-v", "magvit")


def frames():
  return picture_bytes("frames", FRAMES)


def run(convention):
  key = f"prepared/{convention}"
  return {key: (sampled(key, prepared(frames(), CONVENTIONS[convention])[0]), FIXTURE[key])}


CASES = [
  Case(
    module="evals.extractors.i3d.prepared",
    reference="torch-fidelity==0.4.0 and torch==2.13.0, interpolate",
    config=f"{name}, uint8 50 x 84",
    tolerance=1e-5,
    run=functools.partial(run, name),
  )
  for name in ORACLES
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.split(",")[0])
def test_a_convention_gives_the_network_what_its_protocol_does(case):
  check(case)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_says_in_the_record_what_it_does(name):
  extractor = i3d_extractor({}, digest="d", weights="random", convention=name)
  record = extractor.protocol()
  assert isinstance(extractor, Extractor)
  assert record["convention"] == name and record["extractor_digest"] == "d"
  for value in (0, 255):
    x = prepared(np.full((1, 2, 40, 60, 3), value, np.uint8), CONVENTIONS[name])
    assert x.shape == (1, 2, 224, 224, 3)
    np.testing.assert_allclose(x, record["value_range"][value // 255], atol=1e-5)


def test_conventions_that_differ_in_numbers_differ_in_their_records():
  """All but these two, which are told apart by the weights they are published with."""
  records = {c: i3d_extractor({}, digest="", weights="", convention=c) for c in CONVENTIONS}
  seen = {}
  for name, extractor in records.items():
    facts = {k: str(v) for k, v in extractor.protocol().items() if k != "convention"}
    seen.setdefault(tuple(sorted(facts.items())), []).append(name)
  assert [names for names in seen.values() if len(names) > 1] == [["cd-fvd", "stylegan-v"]]
  assert CONVENTIONS["stylegan-v"].weights != CONVENTIONS["cd-fvd"].weights


def mean_extractor(batch_size):
  """Features that depend on nothing but a sample: its mean, and the sizes that were compiled."""
  shapes = []

  def run(params, media):
    shapes.append(media.shape)  # while traced: once a shape
    return {"mean": media.astype(np.float32).mean((1, 2)) * params}

  found = PixelExtractor(
    name="mean",
    digest="",
    run=jax.jit(run),
    params=np.float32(1),
    facts={},
    batch_size=batch_size,
    rank=4,
  )
  return found, shapes


def test_a_ragged_batch_gives_the_same_rows_and_compiles_nothing_new():
  extractor, shapes = mean_extractor(4)
  images = picture_bytes("ragged", (11, 6, 5, 3))
  whole = extractor(images)["mean"]
  assert whole.dtype == np.float32
  np.testing.assert_allclose(whole, images.astype(np.float64).mean((1, 2)), rtol=1e-6)
  for split in (1, 3, 4, 10):
    parts = [extractor(images[:split]), extractor(images[split:])]
    np.testing.assert_array_equal(np.concatenate([p["mean"] for p in parts]), whole)
  assert shapes == [(4, 6, 5, 3)]


def test_an_extractor_computes_on_the_device_it_is_sent_to():
  extractor, _ = mean_extractor(2)
  device = jax.devices()[3]
  moved = extractor.on(device)
  assert jax.tree.leaves(moved.params)[0].devices() == {device}
  images = picture_bytes("moved", (2, 4, 4, 3))
  assert moved.run(moved.params, images)["mean"].devices() == {device}
  np.testing.assert_array_equal(moved(images)["mean"], extractor(images)["mean"])


@pytest.mark.parametrize(
  "images",
  [
    np.zeros((2, 4, 4, 3), np.float32),
    np.zeros((2, 4, 4, 1), np.uint8),
    np.zeros((2, 2, 4, 4, 3), np.uint8),
    np.zeros((0, 4, 4, 3), np.uint8),
  ],
  ids=["floats", "grey", "clips", "empty"],
)
def test_what_is_no_batch_of_rgb_bytes_is_refused(images):
  with pytest.raises(DataError, match="mean reads uint8 RGB"):
    mean_extractor(2)[0](images)


@pytest.mark.parametrize(
  "extractor, frames",
  [
    (i3d_extractor({}, digest="", weights=""), 8),
    (c3d_extractor({}, digest=""), 15),
    (c3d_extractor({}, digest=""), 17),
  ],
  ids=["i3d-8", "c3d-15", "c3d-17"],
)
def test_a_clip_of_another_length_is_refused_before_anything_runs(extractor, frames):
  with pytest.raises(DataError, match=f"got {frames}"):
    extractor(np.zeros((1, frames, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
  "make",
  [
    lambda: i3d_extractor({}, digest="", weights="", convention="other"),
    lambda: inception_extractor({}, digest="", convention="other"),
    lambda: c3d_extractor({}, digest="", convention="other"),
  ],
  ids=["i3d", "inception", "c3d"],
)
def test_an_unknown_convention_is_refused(make):
  with pytest.raises(ConfigError, match="unknown convention 'other'; known are"):
    make()


def test_weights_written_in_a_public_layout_load_and_give_the_same_features(tmp_path):
  """From a file in the layout of pytorch-i3d to features, and not by where a clip is in a batch."""
  params = random_i3d(0)
  theirs = to_theirs(params, i3d_layout(I3D()))
  save_file({n: np.ascontiguousarray(x) for n, x in theirs.items()}, tmp_path / "i3d.safetensors")
  extractor = load_i3d(tmp_path / "i3d.safetensors", batch_size=2)
  clips = picture_bytes("clips", (3, 9, 20, 30, 3))
  found = extractor(clips)
  assert {n: x.shape for n, x in found.items()} == {
    "logits": (3, 400),
    "pool": (3, 1024),
    "probabilities": (3, 400),
  }
  jax.tree.map(np.testing.assert_array_equal, extractor.params, params)
  again = extractor(clips[1:])
  for name, values in found.items():
    assert np.isfinite(values).all() and values.std(axis=0).max() > 0
    np.testing.assert_array_equal(values[1:], again[name])
  assert len(extractor.digest) == 64 and extractor.protocol()["weights"] == "pytorch-i3d"


@pytest.mark.parametrize("load", [load_i3d, load_inception, load_c3d], ids=lambda f: f.__name__)
def test_a_file_of_another_network_is_refused(load, tmp_path):
  save_file({"a.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
  with pytest.raises(CheckpointError, match="other.safetensors"):
    load(tmp_path / "other.safetensors")


def test_lpips_of_pairs_is_ragged_too_and_refuses_unequal_shapes():
  network = LPIPS("alex")
  like = jax.eval_shape(network.init, jax.random.key(0), *network.example())
  params = random_params(unboxed(like)["params"], seed=0)
  params = {n: np.ones_like(x) if n.startswith("head") else x for n, x in params.items()}
  distance = lpips_distance(params, digest="", net="alex", batch_size=2)
  a, b = (picture_bytes(f"lpips bytes {n}", (3, 33, 40, 3)) for n in "ab")
  found = distance(a, b)
  assert found.shape == (3,) and (found > 0.01).all()
  np.testing.assert_array_equal(found[2:], distance(a[2:], b[2:]))
  assert distance.protocol()["net"] == "alex"
  with pytest.raises(DataError, match="pairs of shapes"):
    distance(a, b[:2])

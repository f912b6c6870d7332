"""VGGish and Cnn14 against torchvggish, panns_inference and torchlibrosa, on random weights."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.random_weights import draw
from fixtures.sounds import sounds

from vidgen.evals.extractors.cnn14 import abstract_cnn14
from vidgen.evals.extractors.vggish import abstract_vggish
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.cnn14 import cnn14_layout
from vidgen.interop.layouts.vggish import vggish_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models import cnn14, vggish
from vidgen.models.cnn14 import FRONT_ENDS, Cnn14
from vidgen.models.vggish import VGGish

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "audio_networks.npz")
VGGISH = VGGish(channels=(4, 6, 8, 10), hidden=24, width=12)
CNN14 = Cnn14(channels=(4, 6, 8, 10, 12, 14), width=20, classes=9)
SIGNALS = ("chirp", "clipped", "silence", "constant")
VARIANTS = {"fad": "linear", "torchvggish": "relu"}


@functools.cache
def vggish_weights():
  """By torchvggish's names, as make_audio_networks.py fills them."""
  shapes = {k: v.shape for k, v in _theirs(VGGISH, abstract_vggish, vggish_layout).items()}
  drawn = {}
  for name, shape in shapes.items():
    fan_in = int(np.prod(shape[1:]))
    drawn[name] = draw(name, shape, scale=0.1 if len(shape) == 1 else (2.0 / fan_in) ** 0.5)
  return drawn


@functools.cache
def cnn14_weights():
  """By the names of PANNs, likewise."""
  drawn = {}
  for name, array in _theirs(CNN14, abstract_cnn14, cnn14_layout).items():
    shape, decibels = array.shape, "bn0" in name
    if "running_mean" in name:
      drawn[name] = draw(name, shape, scale=5.0 if decibels else 0.1)
    elif "running_var" in name:
      drawn[name] = draw(name, shape, scale=0.2, offset=1.0) * (400 if decibels else 1)
    elif "bn" in name:
      drawn[name] = draw(name, shape, scale=0.2, offset=1.0 if name.endswith("weight") else 0.0)
    elif len(shape) == 1:
      drawn[name] = draw(name, shape, scale=0.1)
    else:
      drawn[name] = draw(name, shape, scale=(2.0 / int(np.prod(shape[1:]))) ** 0.5)
  return drawn


def _theirs(network, abstract, layout):
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract(network))
  return to_theirs(zeros, layout(network))


@functools.cache
def vggish_params():
  like = abstract_vggish(VGGISH)
  return load_params(MemoryWeights(vggish_weights()), vggish_layout(VGGISH), like=like)


@functools.cache
def cnn14_params():
  like = abstract_cnn14(CNN14)
  return load_params(MemoryWeights(cnn14_weights()), cnn14_layout(CNN14), like=like)


@functools.cache
def _jitted(network):
  return jax.jit(network.apply)


def vggish_windows(name):
  mels = np.asarray(vggish.log_mel(jnp.asarray(sounds(16_000, 2 * 15_360 + 240)[name][None])))[0]
  return mels[: len(mels) // 96 * 96].reshape(-1, 96, 64)


def cnn14_mels(rate, samples):
  front_end = FRONT_ENDS[rate]
  padded = cnn14.mirrored(samples, front_end=front_end)
  return np.asarray(cnn14.log_mel(jnp.asarray(padded[None]), front_end=front_end))


def cnn14_sound(rate, name):
  front_end = FRONT_ENDS[rate]
  return sounds(front_end.sample_rate, 47 * front_end.sample_rate // 100 + front_end.hop // 3)[name]


def vggish_front_end():
  return {
    name: (vggish_windows(name)[:, ::7, ::3], FIXTURE[f"vggish/log_mel/{name}"]) for name in SIGNALS
  }


def vggish_network(params=None):
  params = vggish_params() if params is None else params
  windows = jnp.concatenate([vggish_windows(name) for name in SIGNALS])
  pairs = {}
  for variant, output in VARIANTS.items():
    apply = _jitted(dataclasses.replace(VGGISH, output=output))
    found = np.asarray(apply({"params": params}, windows))
    wanted = np.concatenate([FIXTURE[f"vggish/{variant}/{name}"] for name in SIGNALS])
    pairs[variant] = found, wanted
  return pairs


def cnn14_front_end(rate):
  pairs = {
    name: (
      cnn14_mels(rate, cnn14_sound(rate, name))[0, ::3, ::3],
      FIXTURE[f"cnn14/log_mel/{rate}/{name}"],
    )
    for name in ("chirp", "clipped", "silence")
  }
  power = 10 ** (cnn14_mels(rate, cnn14_sound(rate, "constant"))[0, ::11] / 10)
  pairs["constant, power"] = power, np.maximum(FIXTURE[f"cnn14/power/{rate}"], 1e-10)
  filters = FRONT_ENDS[rate].filters()[::5, ::7]
  return pairs | {"filters": (filters, FIXTURE[f"cnn14/filters/{rate}"])}


def cnn14_network(params=None, names=("chirp", "clipped", "silence")):
  params = cnn14_params() if params is None else params
  mels = [cnn14_mels(r, cnn14_sound(r, name))[0] for r in FRONT_ENDS for name in names]
  lengths = jnp.full([len(mels)], len(mels[0]))
  found = _jitted(CNN14)({"params": params}, jnp.stack(mels), lengths)
  keys = [f"{rate}/{name}" for rate in FRONT_ENDS for name in names]
  clipwise = np.stack([FIXTURE[f"cnn14/clipwise/{key}"] for key in keys])
  return {
    "embedding": (found["embedding"], np.stack([FIXTURE[f"cnn14/embedding/{k}"] for k in keys])),
    "clipwise": (jax.nn.sigmoid(found["logits"]), clipwise),
  }


TORCHVGGISH, PANNS = "torchvggish==0.2", "panns_inference==0.1.1, Cnn14"
FRONT_END = "torchlibrosa==0.1.0, Spectrogram and LogmelFilterBank"
RATE_CASES = {rate: functools.partial(cnn14_front_end, rate) for rate in FRONT_ENDS}
CASES = [
  # torchvggish's front end is float64.
  Case("models.vggish.log_mel", TORCHVGGISH, "four sounds", 1e-4, vggish_front_end),
  Case("models.vggish", TORCHVGGISH, "narrow, with and without last ReLU", 1e-4, vggish_network),
  # Both are float32.
  *[Case("models.cnn14.log_mel", FRONT_END, rate, 1e-5, RATE_CASES[rate]) for rate in FRONT_ENDS],
  Case("models.cnn14", PANNS, "narrow, three sounds at three rates", 1e-5, cnn14_network),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.module} {c.config}")
def test_parity(case):
  check(case)


def test_the_networks_of_the_papers_have_the_shapes_of_the_published_files():
  theirs = jax.eval_shape(lambda: _theirs_abstract(VGGish(), abstract_vggish, vggish_layout))
  assert theirs["embeddings.0.weight"].shape == (4096, 12_288)
  assert theirs["features.13.weight"].shape == (512, 512, 3, 3)
  assert sum(np.prod(x.shape) for x in theirs.values()) == 72_141_184
  theirs = jax.eval_shape(lambda: _theirs_abstract(Cnn14(), abstract_cnn14, cnn14_layout))
  assert theirs["conv_block6.conv2.weight"].shape == (2048, 2048, 3, 3)
  assert theirs["fc_audioset.weight"].shape == (527, 2048)


def test_weights_leave_by_the_names_and_values_that_they_came_with():
  for network, layout, drawn, params in (
    (VGGISH, vggish_layout, vggish_weights(), vggish_params()),
    (CNN14, cnn14_layout, cnn14_weights(), cnn14_params()),
  ):
    found = to_theirs(params, layout(network))
    assert found.keys() == drawn.keys()
    for name, array in drawn.items():
      np.testing.assert_array_equal(found[name], array)


def test_reading_time_and_frequency_in_the_other_order_breaks_vggish():
  params = dict(vggish_params())
  kernel = np.asarray(params["hidden0"]["kernel"]).reshape(6, 4, 10, -1)
  turned = jnp.asarray(kernel.transpose(1, 0, 2, 3).reshape(240, -1))
  params["hidden0"] = params["hidden0"] | {"kernel": turned}
  assert measure(vggish_network(params=params)).relative > 1e-2


def test_a_symmetric_window_breaks_the_front_end(monkeypatch):
  monkeypatch.setattr("vidgen.nn.spectrogram.hann", np.hanning)
  assert measure(vggish_front_end()).relative > 1e-4


def test_htk_filters_break_the_front_end_of_cnn14(monkeypatch):
  original = cnn14.mel_filters
  monkeypatch.setattr(cnn14, "mel_filters", lambda **kw: original(**kw | {"scale": "htk"}))
  assert measure(cnn14_front_end("16k")).relative > 1e-2


def test_normalising_channels_in_place_of_mel_bands_breaks_cnn14():
  norm = {name: jnp.full(64, value.mean()) for name, value in cnn14_params()["norm"].items()}
  params = cnn14_params() | {"norm": norm}
  assert measure(cnn14_network(params=params)).relative > 1e-2


def test_what_follows_a_clip_does_not_change_its_features():
  params, network = cnn14_params(), _jitted(CNN14)
  mels = cnn14_mels("32k", sounds(32_000, 32_000 * 3 // 4)["chirp"])
  frames = mels.shape[1]
  plain = network({"params": params}, mels, np.array([frames], np.int32))
  noise = np.random.default_rng(0).standard_normal([1, 200 - frames, 64]).astype(np.float32)
  padded = np.concatenate([mels, 30 * noise], axis=1)
  found = network({"params": params}, padded, np.array([frames], np.int32))
  for name, values in plain.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
  heard = network({"params": params}, padded, np.array([200], np.int32))
  assert np.abs(heard["embedding"] - plain["embedding"]).max() > 1e-2


def test_the_released_form_is_that_of_torchvggish():
  found = vggish.released_form(
    FIXTURE["vggish/torchvggish/chirp"],
    eigenvectors=draw("pca_eigen_vectors", [12, 12]),
    means=draw("pca_means", [12, 1]).reshape(-1),
  )
  np.testing.assert_array_equal(found, FIXTURE["vggish/released"])
  assert found.min() >= 0 and found.max() <= 255 and len(np.unique(found)) > 4


def test_windows_are_counted_as_the_front_end_makes_them():
  assert [vggish.window_count(n) for n in (0, 15_599, 15_600, 30_959, 30_960)] == [0, 0, 1, 1, 2]


def _theirs_abstract(network, abstract, layout):
  sources = layout(network).sources
  shapes = jax.tree_util.tree_flatten_with_path(abstract(network))[0]
  found = {}
  for path, leaf in shapes:
    source = sources["/".join(key.key for key in path)]
    kernel = {"o i h w -> h w i o": (3, 2, 0, 1), "o i -> i o": (1, 0), "": None}[source.pattern]
    array = jnp.zeros(leaf.shape)
    found[source.names[0]] = array.transpose(kernel) if kernel else array
  return found

"""VGGish and Cnn14 over sounds: the same features in any batch, and no sound is lost in silence."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fixtures.sounds import sounds
from models.test_audio_networks import (
  CNN14,
  FIXTURE,
  VGGISH,
  cnn14_sound,
  cnn14_weights,
  vggish_weights,
)
from safetensors.numpy import save_file

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.evals.extractors.cnn14 import CONVENTIONS, load_cnn14
from vidgen.evals.extractors.vggish import load_vggish
from vidgen.interop.layouts.cnn14 import FILTERS
from vidgen.media.audio import Sound, decode_wav, encode_wav
from vidgen.models.cnn14 import FRONT_ENDS


def sound(samples, rate=16_000):
  return Sound(samples[:, None], rate)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  save_file(vggish_weights(), folder / "vggish.safetensors")
  for rate, front_end in FRONT_ENDS.items():
    arrays = cnn14_weights() | {FILTERS: front_end.filters().astype(np.float32)}
    arrays["bn0.num_batches_tracked"] = np.zeros([], np.int64)
    save_file({f"model.{k}": v for k, v in arrays.items()}, folder / f"cnn14_{rate}.safetensors")
  return folder


@pytest.fixture(scope="module")
def vggish(files):
  return load_vggish(files / "vggish.safetensors", network=VGGISH, batch_size=3)


@pytest.fixture(scope="module")
def with_relu(files):
  path = files / "vggish.safetensors"
  return load_vggish(path, convention="torchvggish", network=VGGISH, batch_size=3)


@pytest.fixture(scope="module")
def cnn14(files):
  return load_cnn14(
    files / "cnn14_16k.safetensors", convention="panns-16k", network=CNN14, batch_size=2
  )


def test_vggish_of_a_wav_file_gives_the_embeddings_of_the_published_tools(vggish):
  samples = sounds(16_000, 2 * 15_360 + 240)["chirp"]
  wav = encode_wav(samples, sample_rate=16_000, sample_format="float32")
  found = vggish([decode_wav(wav)])["embedding"]
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, FIXTURE["vggish/fad/chirp"], atol=1e-3, rtol=1e-4)


def test_cnn14_of_sounds_of_many_lengths_gives_the_features_of_panns(files):
  extractor = load_cnn14(
    files / "cnn14_32k.safetensors", convention="panns", network=CNN14, batch_size=2
  )
  short, long = cnn14_sound("32k", "chirp"), sounds(32_000, 64_000)["chirp"]
  found = extractor([sound(s, 32_000) for s in (short, long, cnn14_sound("32k", "clipped"))])
  wanted = ["32k/chirp", "longer", "32k/clipped"]
  for row, name in zip(found["embedding"], wanted, strict=True):
    np.testing.assert_allclose(row, FIXTURE[f"cnn14/embedding/{name}"], atol=1e-5, rtol=1e-4)
  clipwise = jax.nn.sigmoid(found["logits"][0])
  np.testing.assert_allclose(clipwise, FIXTURE["cnn14/clipwise/32k/chirp"], atol=1e-5)


def test_features_depend_neither_on_the_batch_nor_on_the_order(vggish, cnn14):
  made = [
    sounds(16_000, n)["chirp"] * np.float32(g) for n, g in ((31_000, 1), (16_000, 0.5), (9000, 2))
  ]
  clips = [sound(s) for s in (*made, made[0][:15_700], made[1][:15_900])]
  for extractor, some in ((vggish, [0, 1, 3, 4]), (cnn14, range(5))):
    chosen = [clips[i] for i in some]
    together = extractor(chosen)
    alone = [extractor([clip]) for clip in chosen]
    backwards = [extractor([clip]) for clip in chosen[::-1]][::-1]
    for name, values in together.items():
      np.testing.assert_array_equal(values, np.concatenate([one[name] for one in alone]))
      np.testing.assert_array_equal(values, np.concatenate([one[name] for one in backwards]))


def test_other_rates_and_channels_are_brought_to_the_networks(vggish):
  # All of it is below 6 kHz, so 48 kHz holds the same sound.
  t = np.arange(48_000 + 3000) / 48_000
  tone = (0.3 * np.sin(2 * np.pi * 900 * t) + 0.2 * np.sin(2 * np.pi * 5000 * t)).astype(np.float32)
  stereo = Sound(np.stack([tone * 1.5, tone * 0.5], axis=1), 48_000)
  plain = vggish([sound(tone[::3])])["embedding"]
  np.testing.assert_allclose(vggish([stereo])["embedding"], plain, atol=0.02 * np.abs(plain).max())


def test_windows_say_how_many_rows_a_sound_has(vggish):
  clips = [
    Sound(np.zeros([n, 2], np.float32), rate) for n, rate in ((47_000, 48_000), (31_000, 16_000))
  ]
  assert [vggish.windows(clip) for clip in clips] == [1, 2]
  assert len(vggish(clips)["embedding"]) == 3


def test_a_sound_that_cannot_be_read_fails_and_is_named(vggish, cnn14):
  good, short = (sound(np.zeros(n, np.float32)) for n in (16_000, 1000))
  broken = sound(np.full(16_000, np.inf, np.float32))
  for extractor in (vggish, cnn14):
    with pytest.raises(DataError, match="sound 1: .*short"):
      extractor([good, short])
    with pytest.raises(DataError, match="sound 2: .*not finite"):
      extractor([good, good, broken])
    extractor.check(good)
    for bad, reason in ((short, "short"), (broken, "not finite")):
      with pytest.raises(DataError, match=reason):
        extractor.check(bad)
  with pytest.raises(DataError, match="cut short"):
    vggish([decode_wav(encode_wav(np.zeros(16_000, np.float32))[:-100])])


def test_a_short_sound_can_be_padded_by_name(vggish):
  padding = dataclasses.replace(vggish, short="pad")
  samples = sounds(16_000, 9000)["chirp"]
  found = padding([sound(samples)])["embedding"]
  whole = padding([sound(np.pad(samples, (0, 6600)))])["embedding"]
  np.testing.assert_array_equal(found, whole)


def test_the_conventions_differ_in_their_values_and_their_records(vggish, with_relu):
  made = [vggish, with_relu]
  linear, relu = (one([sound(sounds(16_000, 16_000)["chirp"])])["embedding"] for one in made)
  assert linear.min() < 0
  np.testing.assert_array_equal(relu, np.maximum(linear, 0))
  assert made[0].protocol() != made[1].protocol()


def test_audioldm_reads_the_first_channel_without_its_mean_and_pads_it(cnn14):
  theirs, first = dataclasses.replace(cnn14, convention="audioldm"), sounds(16_000, 9000)["chirp"]
  stereo = Sound(np.stack([first + np.float32(0.1), np.zeros_like(first)], axis=1), 16_000)
  by_hand = np.pad(first - first.mean(dtype=np.float64), (0, 23_000)).astype(np.float32)
  found = theirs([stereo])["logits"]
  np.testing.assert_allclose(found, cnn14([sound(by_hand)])["logits"], atol=1e-4)
  assert np.abs(found - cnn14([stereo])["logits"]).max() > 1e-2


def test_records_are_plain_and_tell_weights_apart(vggish, cnn14):
  for extractor in (vggish, cnn14):
    record = extractor.protocol()
    assert json.loads(json.dumps(record)) == record
    assert record["extractor"] == extractor.name
    assert record["extractor_digest"] == extractor.digest and len(extractor.digest) == 64
  assert vggish.digest != cnn14.digest


def test_an_extractor_moves_to_another_device_and_says_the_same(vggish):
  clip = [sound(sounds(16_000, 16_000)["chirp"])]
  moved = vggish.on(jax.devices()[1])
  np.testing.assert_array_equal(moved(clip)["embedding"], vggish(clip)["embedding"])


def test_weights_of_another_rate_are_refused(files):
  with pytest.raises(CheckpointError, match="is not that of 32k weights"):
    load_cnn14(files / "cnn14_16k.safetensors", convention="panns", network=CNN14)


def test_other_weights_and_unknown_conventions_are_refused(files):
  with pytest.raises(CheckpointError, match="conv0_0|features"):
    load_vggish(files / "cnn14_8k.safetensors", network=VGGISH)
  with pytest.raises(ConfigError, match="unknown convention"):
    load_vggish(files / "vggish.safetensors", convention="pca")
  with pytest.raises(ConfigError, match=", ".join(CONVENTIONS)):
    load_cnn14(files / "cnn14_8k.safetensors", convention="clap")


def test_the_released_form_needs_its_own_file(files, with_relu, tmp_path):
  path = tmp_path / "pca.safetensors"
  arrays = {"pca_eigen_vectors": np.eye(12, dtype=np.float32), "pca_means": np.zeros([12, 1])}
  save_file({k: np.asarray(v, np.float32) for k, v in arrays.items()}, path)
  weights = files / "vggish.safetensors"
  clip = [sound(sounds(16_000, 16_000)["chirp"])]
  whole = load_vggish(weights, convention="torchvggish", pca=path, network=VGGISH, batch_size=3)
  wanted = np.rint((np.clip(with_relu(clip)["embedding"], -2, 2) + 2) * 63.75)
  np.testing.assert_array_equal(whole(clip)["embedding"], wanted)
  assert with_relu.digest in whole.digest and with_relu.digest != whole.digest
  with pytest.raises(CheckpointError, match="pca_means"):
    load_vggish(weights, pca=weights, network=VGGISH)

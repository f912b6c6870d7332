"""The temporal autoencoder: sizes, images as still videos, inflation, and long videos in parts."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.random_weights import draw

from vidgen.models.tae import TAE, tae_flops
from vidgen.nn import streaming
from vidgen.nn.partition import unboxed
from vidgen.systems.movie_gen import decoding
from vidgen.systems.movie_gen.decoding import Tiles, stream_decode, stream_encode, tiled_decode

TINY: Any = TAE(channels=(4, 8, 8, 8), blocks=1, latent_channels=4, groups=4)
PLAIN: Any = TINY.clone(temporal="none")
# the sides folded by 4 and then halved once, frames halved at every level, norms of a position
FOLDED: Any = TINY.clone(patch=4, spatial_levels=1, groups=0)


@functools.cache
def fresh(network: Any) -> Any:
  video = jnp.zeros((1, 8, 16, 16, 3))
  return unboxed(jax.jit(network.init)(jax.random.key(0), video)["params"])


@functools.cache
def drawn(network: Any) -> Any:
  """Weights that mix frames, as training leaves them."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: draw(jax.tree_util.keystr(path), leaf.shape, scale=0.4), fresh(network)
  )


@functools.cache
def program(network: Any, method: str) -> Any:
  return jax.jit(lambda p, x: network.apply({"params": p}, x, method=method))


def video(frames: int, *, seed: int = 0, side: int = 16) -> Any:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (1, frames, side, side, 3)), jnp.float32)


def latents(frames: int, *, side: int = 2) -> Any:
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.standard_normal((1, frames, side, side, 4)), jnp.float32)


def close(found: Any, expected: Any, *, tolerance: float = 1e-5) -> None:
  scale = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


def count(network: TAE) -> int:
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 64, 64, 3)))
  return sum(leaf.size for leaf in jax.tree.leaves(unboxed(shapes["params"])))


def test_the_spatial_part_has_the_parameters_of_stable_diffusion_3s():
  assert count(TAE(temporal="none")) == 83_819_683
  assert count(TAE()) == 83_819_683 + 30_653_118


def test_any_length_becomes_an_eighth_rounded_up():
  """Three convolutions that halve give nested ceilings; and so does the encoder."""
  layer = streaming.TemporalConvolution(3, 2)
  params = {"params": {"kernel": jnp.zeros((3, 1, 1)), "bias": jnp.zeros(1)}}

  @functools.cache
  def halved(frames: int) -> int:
    x = jax.ShapeDtypeStruct((1, frames, 1, 1, 1), jnp.float32)
    out: Any = jax.eval_shape(lambda x: layer.apply(params, streaming.Piece(x)), x)
    return out.x.shape[1]

  for frames in range(1, 301):
    assert halved(halved(halved(frames))) == -(-frames // 8)
  for frames in (1, 7, 17):
    x = jax.ShapeDtypeStruct((1, frames, 16, 16, 3), jnp.float32)
    mean: Any = jax.eval_shape(lambda p, x: program(TINY, "encode")(p, x).mean, fresh(TINY), x)
    assert mean.shape == (1, -(-frames // 8), 2, 2, 4)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9, 17])
def test_a_still_video_is_its_image_in_every_frame(frames):
  still = jnp.tile(video(1), (1, frames, 1, 1, 1))
  params = drawn(TINY)
  image = program(TINY, "encode")(params, still[:, :1]).mean
  found = program(TINY, "encode")(params, still).mean
  close(found, jnp.broadcast_to(image, found.shape))
  picture = program(TINY, "decode_image")(params, image)
  made = program(TINY, "decode")(params, found)
  assert made.shape[1] == 8 * found.shape[1] and picture.shape[1] == 1
  close(made, jnp.broadcast_to(picture, made.shape))


@pytest.mark.parametrize("trap", ["zeros", "last frame twice"])
def test_another_padding_would_be_seen_on_a_still_video(monkeypatch, trap):
  """Zeros, or two frames behind a halving convolution, as other code has them."""

  def over_time(x, kernel, seen, stride):
    taps = kernel.shape[0]
    if taps == 1:
      return jnp.einsum("bthwi,io->bthwo", x, kernel[0])
    ends = (1, 1) if trap == "zeros" else ((0, 2) if stride == 2 else (1, 1))
    mode: Any = "constant" if trap == "zeros" or stride == 1 else "edge"
    x = jnp.pad(x, [(0, 0), ends, (0, 0), (0, 0), (0, 0)], mode=mode)
    return sum(jnp.einsum("bthwi,io->bthwo", x[:, j :: stride][:, : -(-(x.shape[1] - 2) // stride)],
                          kernel[j]) for j in range(3))  # fmt: skip

  monkeypatch.setattr(streaming, "_over_time", over_time)
  still = jnp.tile(video(1), (1, 9, 1, 1, 1))
  made: Any = TINY.apply({"params": drawn(TINY)}, still)
  assert float(jnp.abs(made - made[:, :1]).max()) > 1e-2


def test_fresh_layers_over_time_leave_an_image_autoencoder_as_it_is():
  """Images are its own; where frames double, those between are mixtures, the ends are not."""
  spatial = {n: drawn(PLAIN)[n] for n in ("encoder", "decoder")}

  def merged(ours, theirs):
    return {k: merged(v, theirs[k]) if isinstance(v, dict) and k in theirs else theirs.get(k, v)
            for k, v in ours.items()}  # fmt: skip

  inflated = merged(fresh(TINY), spatial)
  image = video(1)
  close(
    program(TINY, "encode")(inflated, image).mean, program(PLAIN, "encode")(spatial, image).mean
  )
  several = latents(3)
  made = program(TINY, "decode")(inflated, several)
  frames = program(PLAIN, "decode")(spatial, several)
  close(made[:, [0, -1]], frames[:, [0, -1]])
  assert float(jnp.abs(made[:, 11] - frames[:, 1]).max()) > 1e-2


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_stream_decodes_what_the_whole_does_whatever_its_length(pieces):
  params = drawn(TINY)
  for frames in (1, 2, 4, 7, 9):
    x = latents(frames)
    parts = list(stream_decode(TINY, params, np.asarray(x), pieces=pieces))
    close(np.concatenate(parts, axis=1), program(TINY, "decode")(params, x))
  stream = decoding._stream(TINY, "decode", pieces)
  assert stream.traced == 1


@pytest.mark.parametrize("pieces", [8, 16])
def test_a_stream_encodes_what_the_whole_does(pieces):
  params = drawn(TINY)
  for frames in (1, 7, 8, 9, 40):
    x = video(frames)
    parts = list(stream_encode(TINY, params, np.asarray(x), pieces=pieces))
    close(np.concatenate(parts, axis=1), program(TINY, "encode")(params, x).mean)


@pytest.mark.parametrize("frames", [1, 11])
def test_a_folded_network_keeps_images_and_streams(frames):
  params, still = drawn(FOLDED), jnp.tile(video(1), (1, frames, 1, 1, 1))
  found = program(FOLDED, "encode")(params, still).mean
  assert found.shape == (1, -(-frames // 8), 2, 2, 4)
  image = program(FOLDED, "encode")(params, still[:, :1]).mean
  close(found, jnp.broadcast_to(image, found.shape))
  made = program(FOLDED, "decode")(params, found)
  picture = program(FOLDED, "decode_image")(params, image)
  close(made, jnp.broadcast_to(picture, made.shape))
  x = video(frames)
  z = program(FOLDED, "encode")(params, x).mean
  close(np.concatenate(list(stream_encode(FOLDED, params, np.asarray(x))), axis=1), z)
  parts = list(stream_decode(FOLDED, params, np.asarray(z)))
  close(np.concatenate(parts, axis=1), program(FOLDED, "decode")(params, z))


def test_attention_to_all_frames_cannot_stream():
  with pytest.raises(ValueError, match="window"):
    list(stream_decode(TINY.clone(attention_window=None), drawn(TINY), np.asarray(latents(2))))


def test_tiles_of_a_still_video_are_the_whole():
  x = jnp.tile(latents(1), (1, 9, 1, 1, 1))
  made = np.concatenate(list(tiled_decode(TINY, drawn(TINY), np.asarray(x))), axis=1)
  close(made, program(TINY, "decode")(drawn(TINY), x))


def test_tiles_are_blended_with_the_later_one_rising_and_cover_every_frame_once():
  """Of a signal that tiles do not change, blending gives back the signal, also over rows."""
  signal = np.random.default_rng(0).standard_normal((1, 33, 5, 2)).astype(np.float32)
  parts = decoding.tiled(lambda x: np.asarray(x), signal, axis=1, size=8, overlap=4)
  np.testing.assert_allclose(np.concatenate(list(parts), axis=1), signal, atol=1e-6)
  number = iter(range(100))

  def numbered(x):
    return np.full(x.shape, float(next(number)), np.float32)

  parts = decoding.tiled(numbered, signal[:, :12], axis=1, size=8, overlap=4)
  made = np.concatenate(list(parts), axis=1)[0, :, 0, 0]
  np.testing.assert_allclose(made, [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_the_report_has_fifteen_tiles_for_256_frames():
  from vidgen.diffusion.windows import window_starts

  tiles = Tiles()
  starts = window_starts(256 // 8, size=tiles.frames // 8, overlap=tiles.overlap // 8)
  assert len(starts) == 15


def test_memory_of_a_stream_does_not_grow_with_the_video():
  """One program, whose inputs and results are of one piece, serves every length."""
  params, sizes = drawn(TINY), set()
  stream = decoding.Stream(TINY, part="decode", pieces=1)
  for frames in (5, 9, 17):
    x = np.asarray(latents(frames))
    parts = list(stream(params, x, results=8 * frames))
    assert sum(part.shape[1] for part in parts) == 8 * frames
    sizes.add(max(part.shape[1] for part in parts))
  assert stream.traced == 1 and sizes == {8}


def peak(how: str, frames: int) -> int:
  """Bytes, of a process that decodes so many frames of 96 x 96."""
  script = Path(__file__).with_name("run_decode.py")
  # One thread: others would have parts of memory of their own, at times of their own.
  alone = {"NPROC": "1", "MALLOC_ARENA_MAX": "1"}
  environment = {**os.environ, **alone, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  command = [sys.executable, str(script), how, str(frames)]
  made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  return int(made.stdout)


def test_the_memory_of_a_process_does_not_grow_with_what_it_decodes():
  """33 and 257 frames: within 5%, where decoding them whole takes more than twice as much.

  Now and then a buffer is given back late, whatever the length: the lower of two peaks counts.
  """
  short, long = (min(peak("stream", frames) for _ in range(2)) for frames in (33, 257))
  assert long < 1.05 * short
  assert peak("whole", 257) > 2 * long


@pytest.mark.parametrize("part", ["encode", "decode", "decode_image", "both"])
def test_the_flops_grow_with_what_is_computed(part):
  one = tae_flops(TAE(), frames=32, height=256, width=256, part=part)
  assert tae_flops(TAE(), frames=64, height=256, width=256, part=part) == pytest.approx(
    2 * one, rel=0.01
  )

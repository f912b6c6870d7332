"""Frames to the upsampler's latents and back, a few at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.evals.upsampling import Frames
from vidgen.systems.movie_gen.upsampler import resized

VIDEO = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)


class Halves:
  """Latents are the mean of squares of two pixels, times 3; notes the shapes that it is given."""

  identity = {"kind": "halves"}

  def __init__(self):
    self.encoded, self.decoded = [], []

  def encode(self, video):
    self.encoded.append(video.shape)
    n, t, h, w, c = video.shape
    return 3.0 * np.asarray(video).reshape(n, t, h // 2, 2, w // 2, 2, c).mean(axis=(3, 5))

  def decode(self, latents, *, frames):
    assert frames == 1
    self.decoded.append(latents.shape)
    return np.repeat(np.repeat(latents / 3.0, 2, axis=2), 2, axis=3)


@pytest.mark.parametrize("at_once", [1, 3, 7, 20])
def test_frames_are_resized_encoded_and_decoded_in_pieces_of_one_shape(at_once):
  """The latents of every frame in its place, whatever the size of a piece; all pieces have the
  shape of one program, so memory on the device is that of one piece."""
  autoencoder = Halves()
  frames = Frames(autoencoder, height=8, width=10, at_once=at_once)
  large = np.asarray(resized(jnp.asarray(VIDEO[None] / 127.5 - 1), height=8, width=10))[0]
  wanted = 3.0 * large.reshape(7, 4, 2, 5, 2, 3).mean(axis=(2, 4))
  latents = frames.condition(VIDEO)
  np.testing.assert_allclose(latents, wanted, atol=1e-5)
  pieces = list(frames.decoded(latents))
  np.testing.assert_allclose(np.concatenate(pieces)[:, ::2, ::2], latents / 3.0, atol=1e-6)
  assert max(len(piece) for piece in pieces) <= at_once
  assert set(autoencoder.encoded) == {(at_once, 1, 8, 10, 3)}
  assert set(autoencoder.decoded) == {(at_once, 1, 4, 5, 3)}


def test_without_an_autoencoder_latents_are_pixels():
  """In [-1, 1], at the target's size, and clipped when they become video."""
  frames = Frames(None, height=4, width=6, at_once=4)
  latents = frames.condition(VIDEO)
  np.testing.assert_allclose(latents, VIDEO / 127.5 - 1.0, atol=1e-6)
  video = np.concatenate(list(frames.decoded(3.0 * latents)))
  np.testing.assert_allclose(video, np.clip(3.0 * latents, -1, 1))


def test_resizing_is_bilinear_between_pixel_centres():
  """Twice as large, two values in a row get a quarter of the way each, and the border's beyond."""
  row = np.array([0.0, 1.0], np.float32).reshape(1, 1, 1, 2, 1).repeat(3, axis=-1)
  made = np.asarray(resized(jnp.asarray(row), height=1, width=4))[0, 0, 0, :, 0]
  np.testing.assert_allclose(made, [0.0, 0.25, 0.75, 1.0], atol=1e-6)

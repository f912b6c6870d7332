"""Movie Gen's temporal autoencoder (section 3.1.1), and the image autoencoder it is inflated from.

  vidgen train --config configs/movie_gen/tae.py:video --data DIR --workdir TAE_1 \\
    --config.start.files.autoencoder=SD3_VAE --config.start.files.perceptual=LPIPS_HEADS.pth \\
    --config.start.files.perceptual/trunk=VGG16.pth
  vidgen train --config configs/movie_gen/tae.py:video.outliers ... --start-from TAE_1
  vidgen data latents DIR --config configs/movie_gen/t2v_256.py:30b --autoencoder TAE

Variants: video, 8 x 8 x 8 to 16 channels, images among the clips; video.outliers, which adds the
outlier penalty: the paper's ablation has 50,000 steps without and 10,000 with it; image, the same
network without time, for image_1024.py and upsampler.py; tiny_image and tiny, which starts from it,
on ShapesWorld at 32 to 128 pixels a side (how they were found: the system's README).
One batch of images to three of video, the losses and the penalty's weight are the paper's; batch,
rates, lengths of clips, resolution and the other weights are not given by it. LPIPS's network runs
in bfloat16 as the others do. Meant for v5p slices: video on 128 chips, 8.3e15 FLOPs a step, 21.9 of
95.7 GiB a device; image on 16, 7.3e14 FLOPs, 11.7 GiB (tae.plans.json, planned with --effort -1:
with 0 the compiler takes about 10 s of a CPU for each of hundreds of convolutions).
"""

import ml_collections

VARIANTS = ("video", "video.outliers", "image", "tiny_image", "tiny")


def get_config(arg: str = "video") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  config = {
    "video": lambda: full(steps=50_000, outliers=0.0),
    "video.outliers": lambda: full(steps=10_000, outliers=1e5),
    "image": image,
    "tiny_image": tiny_image,
    "tiny": tiny,
  }[arg]()
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_tae_{arg}"})


def buckets(frames: int, side: int, *, fps: float) -> dict:
  """One batch of images to three of clips, of as many pixels a side; only images of one frame."""
  found = [{"name": "video", "frames": frames, "height": side, "width": side}]
  image = {"name": "image", "frames": 1, "height": side, "width": side}
  found = [*found, image] if frames > 1 else [image]
  weights = {"video": 3.0, "image": 1.0}
  inputs = [{**b, "subset": b["name"], "fps": fps, "weight": weights[b["name"]]} for b in found]
  return {"stage": found, "inputs": inputs}


def full(*, steps: int, outliers: float, frames: int = 32, **fields) -> dict:
  """The shape of Stable Diffusion 3's autoencoder; LPIPS and a discriminator are on."""
  shapes = buckets(frames, 256, fps=16.0)
  optimizer = {"learning_rate": 1e-4, "warmup_steps": 1000}
  return {
    "stage": {
      "name": "movie_gen/tae",
      "fields": {"outlier_weight": outliers, "buckets": shapes["stage"], **fields},
    },
    "inputs": {"buckets": shapes["inputs"], "caption_dropout": 0.0},
    "train": {
      "steps": steps,
      "batch_size": 128,
      "save_every": 500,
      "optimizer": optimizer,
      "optimizers": {"^discriminator/": optimizer},
    },
    "topology": "v5p:4x4x8",
    # over all devices the smallest arrays, which do not divide, would outweigh the shares
    "mesh": {"data": -1, "fsdp": 8, "context": 1, "tensor": 1},
  }


def image() -> dict:
  """Frame by frame: what the image model and the upsampler work on."""
  config = full(steps=50_000, outliers=1e5, frames=1, temporal="none", remat="none")
  config["train"]["batch_size"] = 256
  config["topology"] = "v5p:2x2x4"
  return config


def tiny_image() -> dict:
  """Pictures of ShapesWorld of three sizes: what `tiny` starts from."""
  config = tiny()
  shapes = [{"name": f"image_{side}", "frames": 1, "height": side, "width": side}
            for side in (32, 64, 128)]  # fmt: skip
  config["stage"]["fields"] |= {"temporal": "none", "buckets": shapes}
  config["inputs"]["buckets"] = [{**shape, "subset": "image", "fps": 16.0} for shape in shapes]
  config["train"] |= {"steps": 6000, "batch_size": 4}
  config["train"]["optimizer"] |= {"name": "muon", "learning_rate": 5e-3}
  return config


def tiny() -> dict:
  """ShapesWorld, 16 frames of 64 x 64 pixels to 2 x 8 x 8 latents; no LPIPS, no discriminator."""
  shapes = [
    {"name": "video", "frames": 16, "height": 64, "width": 64},
    {"name": "video_32", "frames": 16, "height": 32, "width": 32},
    {"name": "image", "frames": 1, "height": 64, "width": 64},
    {"name": "image_128", "frames": 1, "height": 128, "width": 128},
  ]
  weights = {"video": 2.0, "video_32": 1.0, "image": 0.5, "image_128": 0.5}
  inputs = [
    {**shape, "subset": shape["name"].partition("_")[0], "fps": 16.0,
     "weight": weights[shape["name"]]}
    for shape in shapes
  ]  # fmt: skip
  return {
    "stage": {
      "name": "movie_gen/tae",
      "fields": {
        "channels": [64, 128, 128, 128],
        "patch": 4,
        "spatial_levels": 1,
        "blocks": 0,
        "groups": 0,
        "buckets": shapes,
        "reconstruction": "l2",
        "decoded": "mean",
        "perceptual_weight": 0.0,
        "gan_weight": 0.0,
        "discriminator": None,
        "outlier_weight": 0.0,
        "dtype": "float32",
        "remat": "none",
      },
    },
    "inputs": {"buckets": inputs, "caption_dropout": 0.0, "cache_bytes": 2**30},
    "train": {
      "steps": 5000,
      "batch_size": 2,
      "ema_decay": 0.99,
      "save_every": 1000,
      "optimizer": {"learning_rate": 4e-4, "warmup_steps": 100, "decay": "linear", "b2": 0.99},
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
  }

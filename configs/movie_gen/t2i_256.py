"""Movie Gen Video at 256 pixels, first stage: text-to-image (first row of Table 3).

  vidgen train --config configs/movie_gen/t2i_256.py:30b --data DIR --workdir T2I_256 \\
    --config.inputs.autoencoder.workdir=TAE

Variants: 30b (the paper's model), and tiny: 32 x 32 pixels of ShapesWorld, as latents of tae.py's
tiny. 30b eats images as the temporal autoencoder's latents, one frame, and the embeddings of UL2,
ByT5 and MetaCLIP. Only squares: the position tables have 16 rows each way, and are made larger by
the next stage, t2v_256.py. Learning rate, batch and iterations are the paper's; the optimizer, its
warm-up, weight decay and EMA are not given by it. Meant for v5p or H100 pods (t2i_256.plans.json).
"""

import ml_collections

VARIANTS = ("30b", "tiny")


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  config = {"30b": full, "tiny": tiny}[arg]()
  config["name"] = f"movie_gen_t2i_256_{arg}"
  return ml_collections.ConfigDict(config)


def stage(side: int, **fields) -> dict:
  """The stage and the inputs of one bucket of square images."""
  shape = {"name": "image", "frames": 1, "height": side, "width": side}
  return {
    "stage": {"name": "movie_gen/t2v", "fields": {**fields, "buckets": [shape]}},
    "inputs": {"buckets": [{**shape, "subset": "image", "fps": 16.0}]},
  }


def full() -> dict:
  """1.94 billion images in 210,000 steps; defaults of the stage are the paper's model."""
  return {
    **stage(256, max_grid=[32, 16, 16], remat="names"),
    "train": {
      "steps": 210_000,
      "batch_size": 9216,
      "accumulate": 2,
      "save_every": 200,
      "optimizer": {"learning_rate": 1e-4},
    },
    "topology": "v5p:4x4x8",
    "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": 1},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }


def tiny() -> dict:
  """ShapesWorld's pictures of 32 x 32 pixels; the recipe of t2v_256.py's tiny, not tuned anew."""
  config = stage(
    32,
    layers=6,
    width=128,
    heads=4,
    mlp_width=352,
    patch=[1, 1, 1],
    max_grid=[2, 4, 4],
    position_scale=0.5,
    pooled_text=True,
    text_streams={},
    text_encoder={"length": 96, "words": 16, "width": 128},
    prediction="data",
    noise_floor=0.5,
    time_loc=-0.3,
    dtype="float32",
    remat="none",
    scan_unroll=6,
  )
  config["inputs"] |= {"text_length": 96, "cache_bytes": 2**28, "autoencoder": {}}
  config["inputs"]["temporal_crop"] = "center"  # as a cache of latents has it
  return config | {
    "train": {
      "steps": 1000,
      "batch_size": 64,
      "ema_decay": 0.99,
      "save_every": 200,
      "optimizer": {
        "name": "muon",
        "learning_rate": 8e-3,
        "warmup_steps": 20,
        "decay": "linear",
        "b2": 0.99,
      },
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 32, "guidance_scale": 4.0, "linear_steps": 64},
  }

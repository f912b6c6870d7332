"""Movie Gen Video at 256 pixels: text-to-image and text-to-video, jointly (section 3.1.4).

  vidgen train --config configs/movie_gen/t2v_256.py:tiny --data DIR --workdir DIR

Variants: 30b (the paper's model), 5b (its ablations'), 1b, and tiny, which learns ShapesWorld in
pixel space on two CPU cores. All but tiny eat latents (16 channels, stride 8 x 8 x 8) and the
embeddings of UL2, ByT5 and MetaCLIP, computed beforehand. Learning rates, batch and iterations of
30b are the joint stage's (Table 3 of the paper, whose second phase doubles the batch); the
optimizer, its warm-up, weight decay and EMA are not given by the paper. Meant for v5p or H100 pods.
One forward pass of 30b over 256 frames of 256 x 256 (8,192 tokens) is 0.506 PFLOP by the network's
own formula.
"""

import ml_collections

# layers, width, heads, MLP width. The MLP width of 5b, and all of 1b, are not given by the paper.
SIZES = {
  "1b": (24, 1536, 16, 4096),
  "5b": (32, 3072, 24, 8192),
  "30b": (48, 6144, 48, 16384),
}

# The devices a size is meant for, and how it lies on them: context, tensor, micro-batches of a
# step, what the backward pass keeps. Plans for other devices are in t2v_256.plans.json.
DEVICES = {
  "1b": ("v5e:8x8", 1, 1, 24, "names"),
  "5b": ("v6e:8x16", 1, 1, 12, "names"),
  "30b": ("v5p:4x4x8", 1, 2, 12, "names"),
}

RULES = [
  ["batch", ["data", "fsdp"]],
  ["tokens", ["context", "tensor"]],
  ["sequence", "context"],
  ["embed", "fsdp"],
  ["heads", "tensor"],
  ["mlp", "tensor"],
  ["embed_out", "tensor"],
]


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`: 1b, 5b, 30b or tiny."""
  config = tiny() if arg == "tiny" else full(*SIZES[arg], *DEVICES[arg])
  config["name"] = f"movie_gen_t2v_256_{arg}"
  return ml_collections.ConfigDict(config)


def bucket(name: str, frames: int, side: int, *, fps: float = 16.0, weight: float = 1.0) -> dict:
  """A batch shape of the input pipeline."""
  subset = "image" if name == "image" else "video"
  sides = {"frames": frames, "height": side, "width": side}
  return {"name": name, "subset": subset, **sides, "fps": fps, "weight": weight}


def shape(bucket: dict) -> dict:
  """The same batch shape, as the stage knows it."""
  return {key: bucket[key] for key in ("name", "frames", "height", "width")}


def full(
  layers: int,
  width: int,
  heads: int,
  mlp_width: int,
  topology: str,
  context: int,
  tensor: int,
  accumulate: int,
  remat: str,
) -> dict:
  """A model over latents; defaults of the stage are the paper's."""
  buckets = [
    bucket("video", 256, 256),
    bucket("video_192", 192, 256),
    bucket("video_128", 128, 256),
    bucket("image", 1, 256, weight=0.3),  # one image to ten videos
  ]
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "remat": remat,
        "buckets": [shape(b) for b in buckets],
      },
    },
    "inputs": {"buckets": buckets},
    "train": {
      "steps": 185_000,
      "batch_size": 1536,
      "accumulate": accumulate,
      "save_every": 100,
      "optimizer": {"learning_rate": 6e-5},
    },
    "topology": topology,
    "mesh": {"data": 1, "fsdp": -1, "context": context, "tensor": tensor},
    "rules": RULES,
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }


def tiny() -> dict:
  """ShapesWorld, 8 frames of 16 x 16 pixels; what was tried is in the system's README."""
  buckets = [bucket("video", 8, 16, fps=4.0)]
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": 6,
        "width": 128,
        "heads": 4,
        "mlp_width": 352,
        "patch": [8, 2, 2],  # 64 tokens: motion within a token, outlines between them
        "max_grid": [1, 8, 8],
        "position_scale": 0.5,
        "pooled_text": True,
        "latent": None,
        "text_streams": {},
        "text_encoder": {"length": 96, "words": 16, "width": 128},
        "buckets": [shape(b) for b in buckets],
        "prediction": "data",
        "noise_floor": 0.5,
        "time_loc": -0.3,
        "dtype": "float32",
        "remat": "none",
        "scan_unroll": 6,
      },
    },
    "inputs": {"buckets": buckets, "text_length": 96, "cache_bytes": 2**28},
    "train": {
      "steps": 1300,
      "batch_size": 64,
      "ema_decay": 0.99,
      "save_every": 200,
      "eval_every": 400,
      "sheet_every": 400,
      "optimizer": {
        "name": "muon",
        "learning_rate": 8e-3,
        "warmup_steps": 20,
        "decay": "linear",
        "b2": 0.99,
      },
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "rules": RULES,
    "sample": {"steps": 32, "guidance_scale": 4.0, "linear_steps": 64},
  }

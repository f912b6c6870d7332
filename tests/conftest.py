"""Eight fake CPU devices, checked shapes, checked keys and a persistent compilation cache."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("VIDGEN_TEST_CACHE", ROOT / ".cache" / "jax"))
CACHE.mkdir(parents=True, exist_ok=True)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# XLA's threads. Eight devices on as many threads as there are cores wait for one another for ever
# where a loop with collectives stands beside another collective (ring attention, jax 0.10.2).
os.environ.setdefault("NPROC", "16")

from jaxtyping import install_import_hook  # noqa: E402  (the environment must be set before jax)

install_import_hook("vidgen", "beartype.beartype")

import jax  # noqa: E402  (likewise)
import pytest  # noqa: E402  (likewise)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


def pytest_collection_modifyitems(items):
  if os.environ.get("VIDGEN_SOAK"):
    return
  for item in items:
    if item.get_closest_marker("soak"):
      item.add_marker(pytest.mark.skip(reason="minutes long; run by `make soak`"))

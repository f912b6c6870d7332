"""Weights and programs in and out: Hugging Face and PyTorch files, safetensors with their config,
StableHLO that runs alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from vidgen.interop.text_encoders import LoadedTextEncoder, load_text_encoder

__all__ = ["LoadedTextEncoder", "load_text_encoder"]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from vidgen.interop import text_encoders  # only when asked: it brings all networks along

  return getattr(text_encoders, name)

"""Weights and programs in and out: safetensors with their config, StableHLO that runs alone."""

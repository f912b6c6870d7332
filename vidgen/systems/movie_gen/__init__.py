"""Movie Gen (Polyak et al., 2024): the stages of its cast of models."""

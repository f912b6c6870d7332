"""Imagen Video (Ho et al., 2022): a cascade of seven diffusion models on pixels."""

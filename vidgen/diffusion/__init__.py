"""The mathematics of diffusion and flow matching: no networks, no configs."""

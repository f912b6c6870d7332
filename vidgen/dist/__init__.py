"""Devices: the mesh, the rules that lay arrays out on it, and what a device can do at most."""

"""vidgen: train, sample, evaluate and export text-to-video systems in JAX.

Importing this package reads no file, opens no device and imports no other package; each room
(`vidgen.train`, `vidgen.inputs`, ...) is imported by name where it is needed.
"""

__version__ = "0.1.0"

"""Parts of networks: pure, and with no system's name in them."""

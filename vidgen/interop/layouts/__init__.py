"""How other libraries lay out the weights of each network."""

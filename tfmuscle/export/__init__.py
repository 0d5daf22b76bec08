"""A trained network as a bundle that other programs run."""

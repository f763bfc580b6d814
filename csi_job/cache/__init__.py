"""The cache: every radiograph decoded once into one uint8 array per split."""

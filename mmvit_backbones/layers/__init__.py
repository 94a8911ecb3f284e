"""Building blocks of the backbones in plain PyTorch, one idea a file."""

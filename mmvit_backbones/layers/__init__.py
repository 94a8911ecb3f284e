"""Building blocks of the backbones, one idea a file. Maps inside are (B, H, W, C)."""

"""Speed and memory of our backbones in every form, beside every peer in every form."""

"""Ways to make one language model out of frozen backbones."""

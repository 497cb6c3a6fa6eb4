"""What methods are made of: backbones and their weights, layers, losses, photographs, random numbers."""

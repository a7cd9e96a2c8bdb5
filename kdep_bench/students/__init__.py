"""Student backbones, student configs made from a name of a network, and spaces for searches."""

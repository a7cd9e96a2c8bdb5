"""Records: what one transfer run leaves behind, how it is stored, and how two folders differ."""

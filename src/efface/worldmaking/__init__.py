"""How the bundled world is made: artwork, scenes, training, judges, checks."""

"""Public implementations under our names: an adapter translates names and the order of axes, never conventions."""

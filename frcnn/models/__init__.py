"""Keras layers and models; they import `frcnn.ops` only."""

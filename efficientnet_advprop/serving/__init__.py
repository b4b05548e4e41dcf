"""Exports of a trained network that need none of our code: SavedModel, TFLite, ONNX, Keras."""

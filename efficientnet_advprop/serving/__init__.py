"""From a trained network to something that answers requests without any of our code:
SavedModel, TFLite, ONNX, Keras.
"""

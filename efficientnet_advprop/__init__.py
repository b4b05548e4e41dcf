"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2 and Keras: training with clean and
adversarial images.

Each kind of images has batch norms of its own. Importing this package loads neither
TensorFlow nor Keras and leaves the environment alone: what needs them checks for them.
"""

"""AdvProp (Xie et al., CVPR 2020) for TensorFlow 2: train on clean and adversarial images, each through its own batch norms."""

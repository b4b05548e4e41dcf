"""Devices, replicas and compilers. This package knows nothing of models or training."""

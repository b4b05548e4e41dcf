"""Trained networks, and the classification of images by them."""

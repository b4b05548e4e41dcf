"""Reads other people's images: folders, archives, lists of classes, and robustness sets."""

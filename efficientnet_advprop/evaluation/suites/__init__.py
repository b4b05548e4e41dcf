"""Test sets by name: which there are, where they lie, how they are read."""

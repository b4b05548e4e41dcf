"""What all programs share: how they start and end, and common groups of flags."""

"""What all programs share: how they start and end, and the flags of networks and strategies."""

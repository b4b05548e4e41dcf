"""Where it runs: distribution strategies, reductions over replicas, precision. Knows nothing of models or training."""

"""How good it is: metrics from sums and counts, accuracy under corruptions and attacks, and reports of them."""

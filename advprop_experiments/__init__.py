"""Studies: many training runs, the comparison of their results, and reports about them."""

"""Studies: many training runs, and what they say together."""

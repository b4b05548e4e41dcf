"""Studies: each file's `get_study` returns an `advprop_experiments.plan.Study`."""

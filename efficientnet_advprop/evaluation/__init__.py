"""How accurate and how robust a network is: suites of test sets, runs over them, and
metrics.

    from efficientnet_advprop import evaluation
    results = evaluation.run(model, ["imagenet", "imagenet_a"], data_dir="/data")

docs/evaluation.md is the guide. Reports are made by `efficientnet_advprop.reports`.
"""

from efficientnet_advprop.evaluation.evaluation_run import run as run

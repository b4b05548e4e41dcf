"""How good it is, and how robust: test suites, runs of them, metrics from sums and counts, and reports.

    from efficientnet_advprop import evaluation
    results = evaluation.run(model, ["imagenet", "imagenet_a"], data_dir="/data")

See `running.run`, `report_files.write_report` and docs/evaluation.md.
"""

from efficientnet_advprop.evaluation.evaluation_run import run as run

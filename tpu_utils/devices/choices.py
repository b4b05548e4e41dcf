"""The choices of `make_strategy`, without TensorFlow: --help reads them too."""

# The strategies and what each computes on.
STRATEGIES = {
    "one_device": "the first GPU, else the CPU",
    "mirrored": "all GPUs of this machine",
    "tpu": "a TPU or a pod of them",
    "multi_worker": "several machines, each running this same command",
}
RESOLVERS = ("tf_config", "slurm", "kubernetes")  # where the list of machines comes from

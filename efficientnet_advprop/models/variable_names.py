"""What variables are called in checkpoints."""


def official_name(name: str) -> str:
    """A `tf.Variable.name` as in a released checkpoint: without the number of the output, ":0"."""
    return name.partition(":")[0]

"""Where the records of a run come from: `config.data.source` and a split's name -> `records.Split`.

Whatever the source, the pipeline reads TFRecord files; a source only says which, and what their features are called.
"""

import typing

from efficientnet_advprop.data import digits
from efficientnet_advprop.data import records

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config import DataConfig


def open_split(data: "DataConfig", data_dir: str, split: str) -> records.Split:
    """The shards of a split: "train", "validation", or a prefix of other TFRecord files in the official layout.

    Raises:
      records.DataError: the data are not there or not whole (see `records.open_split`).
    """
    if data.source == "digits":
        digits.ensure_digits(data_dir)
    elif data.source != "tfrecord":
        raise ValueError(f"`config.data.source` is {data.source!r}, but must be 'tfrecord' or 'digits'.")
    return records.open_split(data_dir, split, tolerate_broken_tails=data.max_bad_records > 0)

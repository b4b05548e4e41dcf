"""Makes the repository's folder configs/ importable as `efficientnet_advprop.configs`.

A wheel has a folder of that name here, which Python finds before this file.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[1] / "configs")]

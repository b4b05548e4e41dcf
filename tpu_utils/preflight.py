"""Runs `efficientnet_advprop.preflight` under its former name, `python -m
tpu_utils.preflight`.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("efficientnet_advprop.preflight", run_name="__main__", alter_sys=True)

"""`python -m tpu_utils.preflight`, the program's first name: the same as `python -m efficientnet_advprop.preflight`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("efficientnet_advprop.preflight", run_name="__main__", alter_sys=True)

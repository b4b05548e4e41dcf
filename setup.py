"""What pyproject.toml cannot say: in a wheel the recipes of configs/ travel inside the package."""

from setuptools import find_packages, setup

CONFIGS = "efficientnet_advprop.configs"  # `command_line.recipes` looks there

setup(
    packages=[
        *find_packages(include=["efficientnet_advprop*", "tpu_utils*"]),
        CONFIGS,
        f"{CONFIGS}.studies",
    ],
    package_dir={CONFIGS: "configs", f"{CONFIGS}.studies": "configs/studies"},
)

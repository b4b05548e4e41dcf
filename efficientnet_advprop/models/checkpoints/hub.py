"""Repositories on the Hugging Face hub, `hf://owner/name`, by `huggingface_hub`: its cache,
resumed downloads, offline mode (HF_HUB_OFFLINE) and mirrors (HF_ENDPOINT).
"""

import glob
import logging
import os
import re
from typing import Optional

from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.checkpoints.published_checkpoints import PublishedCheckpoint
from efficientnet_advprop.runtime.errors import CheckpointError, brief_message

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?")
# Weights that are read here, and what lies beside them.
_PATTERNS = [
    "*.safetensors",
    "*.h5",
    "*.index",
    "*.data-*",
    "checkpoint",
    "*.json",
    "labels_map.txt",
]
_BESIDE = ["config.json", "labels_map.txt", "checkpoint"]
_TIMM_TAGS = {
    **{"advprop": "ap_in1k", "noisystudent": "ns_jft_in1k", "randaugment": "ra_in1k"},
    **{"autoaugment": "aa_in1k", "v2-21k": "in21k", "v2-21k-ft1k": "in21k_ft_in1k"},
}
_TIMM_ARCHITECTURES = {
    **{"edgetpu-S": "tf_efficientnet_es", "edgetpu-M": "tf_efficientnet_em"},
    **{"edgetpu-L": "tf_efficientnet_el", "condconv-b0-4e": "tf_efficientnet_cc_b0_4e"},
    **{"condconv-b0-8e": "tf_efficientnet_cc_b0_8e", "l1": None},
    "condconv-b0-8e-depth": "tf_efficientnet_cc_b1_8e",
}


def fetch(address: str) -> str:
    """Returns the local path of a repository's files, or of the one that is named.

    Args:
        address: "hf://owner/name", with "@revision" or "/file" behind it if need be.

    Raises:
        CheckpointError: `huggingface_hub` is missing, or the files cannot be had.
    """
    repository, revision, file = parse(address)
    library = _import_library(address)
    folder = os.path.dirname(file) if file else ""
    patterns = [f"{file}*", *(os.path.join(folder, name) for name in _BESIDE)]
    try:
        found = library.snapshot_download(
            repository, revision=revision, allow_patterns=patterns if file else _PATTERNS
        )
    except Exception as error:  # of the library, of its client or of the system
        raise CheckpointError(
            f"`source` is {address!r}, which cannot be had from the hub:"
            f" {type(error).__name__}: {brief_message(error)}"
        ) from error
    path = os.path.join(found, file) if file else found
    has_files = os.path.isdir(found) and any(
        os.path.isfile(entry.path) for entry in os.scandir(found)
    )
    if not has_files or (file and not glob.glob(f"{glob.escape(path)}*")):
        raise CheckpointError(
            f"`source` is {address!r}, a repository without such weights; those that are read here"
            f" end in {', '.join(pattern.lstrip('*') for pattern in _PATTERNS[:3])}."
        )
    return path


def push(folder: str, address: str, names: list[str]) -> str:
    """Uploads files to a repository, which is made if it is not there; returns its address.

    Raises:
        CheckpointError: as in `fetch`; without access, too.
    """
    repository, revision, _ = parse(address)
    api = _import_library(address).HfApi()
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, allow_patterns=names
        )
    except Exception as error:
        raise CheckpointError(
            f"`--push` is {address!r}, to which {folder!r} cannot be uploaded:"
            f" {type(error).__name__}: {brief_message(error)}. `hf auth login` gives access."
        ) from error
    return str(url)


def parse(address: str) -> tuple[str, Optional[str], Optional[str]]:
    """Returns repository, revision and file of an address; the last two may be None."""
    match = _ADDRESS.fullmatch(address)
    if not match or ".." in address:
        raise CheckpointError(
            f"{address!r} is no repository; give hf://owner/name, such as"
            " hf://timm/tf_efficientnet_b3.ap_in1k."
        )
    return match[1], match[2], match[3]


def _import_library(address: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{address!r} needs huggingface_hub: pip install 'efficientnet-advprop[hub]'."
        ) from error
    for name in ("httpx", "httpx2"):  # its client's, which tell of every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


def timm_architecture(variant: str) -> Optional[str]:
    """Returns timm's name of a variant; None where timm does not have it."""
    default = f"tf_{scaling.network_name(variant)}".replace("-", "_")
    return _TIMM_ARCHITECTURES.get(variant, default)


def mirror(published: PublishedCheckpoint) -> Optional[str]:
    """Returns where timm has a published network; None where it does not."""
    architecture = timm_architecture(published.variant)
    suffix = "_475" if "475" in published.name else ""
    is_small = re.fullmatch(r"v2-b[012]", published.variant) and "21k" in published.kind
    if architecture is None or published.kind == "sat" or is_small:
        return None
    return f"{SCHEME}timm/{architecture}.{_TIMM_TAGS.get(published.kind, 'in1k')}{suffix}"

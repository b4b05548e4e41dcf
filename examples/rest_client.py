r"""Classifies image files with TensorFlow Serving over HTTP.

    python examples/rest_client.py panda.jpg cat.png \
        --url=http://localhost:8501/v1/models/efficientnet:predict

It needs only Python's standard library.
"""

import argparse
import base64
import json
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request


def make_request(files: list[bytes]) -> bytes:
    """Returns a request to `serving_default`: the unchanged contents of image files of any size."""
    instances = [{"b64": base64.b64encode(file).decode()} for file in files]
    return json.dumps({"signature_name": "serving_default", "instances": instances}).encode()


def describe(prediction: dict) -> str:
    """Returns one element of the answer's `predictions`, in words."""
    if prediction["error"]:
        return f"not classified: {prediction['error']}"
    names = prediction.get("labels") or [f"class {index}" for index in prediction["classes"]]
    return ", ".join(
        f"{name} {100 * probability:.1f} %"
        for name, probability in zip(names, prediction["probabilities"])
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8501/v1/models/efficientnet:predict")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    try:
        files = [pathlib.Path(path).read_bytes() for path in arguments.images]
    except OSError as error:
        sys.exit(f"error: {error}")
    request = urllib.request.Request(
        arguments.url, make_request(files), {"Content-Type": "application/json"}
    )
    # A company's proxy (http_proxy) knows nothing of a server on this machine.
    is_here = urllib.parse.urlsplit(arguments.url).hostname in ("localhost", "127.0.0.1", "::1")
    proxies = urllib.request.ProxyHandler({} if is_here else None)
    try:
        with urllib.request.build_opener(proxies).open(request, timeout=60) as response:
            predictions = json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        sys.exit(f"error: the server refused the request: {error.read().decode(errors='replace')}")
    except OSError as error:  # URLError is one
        sys.exit(f"error: no server answers at {arguments.url}: {error}")
    for path, prediction in zip(arguments.images, predictions):
        print(f"{path}: {describe(prediction)}")


if __name__ == "__main__":
    main()

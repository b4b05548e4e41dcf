"""The README of weights that are passed on, in the hub's form."""

import json
from typing import Any, Mapping

_LIBRARIES = {"released": "efficientnet-advprop", "timm": "timm", "keras-applications": "keras"}
_PAGE = """---
license: {licence}
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
- efficientnet
- advprop
---

# {name}

{data} The file `{file}` has {here}.

## Metrics

| measured | figure |
|---|---|
{rows}

## Configuration

```json
{facts}
```

## Loading

```python
from efficientnet_advprop.serving.trained_network import restore_network

network = restore_network("{place}")
```

```python
import timm

{in_timm}
```

```python
import keras

{in_keras}
```
{keras_note}
## Licence

{terms}
"""


def describe(
    name: str,
    file_format: str,
    file: str,
    *,
    architecture: str,
    place: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, str],
    data: str,
    is_published: bool,
    keras_note: str = "",
) -> str:
    """Returns a model card.

    Args:
        name: of the model, the page's title.
        file_format: "released", "timm" or "keras-applications".
        file: the weights' name within the repository.
        architecture: what the format's library calls the network.
        place: from where a reader loads it: a repository (hf://…) or a path.
        facts: of the network and its pre-processing, by the names of our arguments.
        metrics: what was measured → the figure, with its unit.
        data: what it was trained on and how.
        is_published: whether the weights are Google's, which are under Apache 2.0.
        keras_note: how a user of Keras has to prepare pixels, if not by the model's own layer.
    """
    licence = "apache-2.0" if is_published else "other"
    terms = (
        "Apache 2.0, as the released checkpoints."
        if is_published
        else "Not stated by the program that wrote this page; the data's terms apply as well."
    )
    here = {
        "released": "the released format: TensorFlow 1's name-based checkpoint",
        "timm": "timm's names, in safetensors",
        "keras-applications": "Keras's names, for `keras.applications`",
    }[file_format]
    rows = "\n".join(f"| {what} | {figure} |" for what, figure in metrics.items())
    repository = place.removeprefix("hf://")
    in_timm = f'timm.create_model("hf-hub:{repository}", pretrained=True)'
    in_keras = (
        f"model = keras.applications.{architecture}(weights=None, classes={facts['num_classes']})\n"
        f'model.load_weights("{file}")'
    )
    convert = "python -m efficientnet_advprop.release --checkpoint={} --format={} --output={}"
    to_timm = "# first: " + convert.format(place, "timm", "ported")
    to_keras = "# first: " + convert.format(place, "keras-applications", "ported")
    return _PAGE.format(
        licence=licence,
        library=_LIBRARIES[file_format],
        name=name,
        data=data,
        file=file,
        here=here,
        rows=rows or "| nothing | – |",
        facts=json.dumps(facts, indent=1),
        place=place,
        in_timm=in_timm if file_format == "timm" else to_timm,
        in_keras=in_keras if file_format == "keras-applications" else to_keras,
        keras_note=keras_note,
        terms=terms,
    )

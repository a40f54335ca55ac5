"""Arrays and texts in the form in which a page carries them: one compressed block that its script unpacks."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Types that a browser has arrays of.
_TYPES = {"uint8": "Uint8Array", "uint16": "Uint16Array", "uint32": "Uint32Array", "int32": "Int32Array",
          "float32": "Float32Array"}  # fmt: skip
_ALIGNED = 8


def packed(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return facts and arrays as base64 of gzip: of the facts' length, the facts in JSON, and the arrays.

    In base64 no text of a model or a dataset can end the script element that holds it.

    Args:
        about: What JSON can hold; `arrays` is added to it, with each array's type, shape and place.
        arrays: Of a type in `_TYPES`; little-endian.
    """
    places: dict[str, Any] = {}
    offset = 0
    blocks: list[bytes] = []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        places[name] = {"type": _TYPES[array.dtype.name], "shape": array.shape, "offset": offset}
        padding = -len(data) % _ALIGNED
        blocks.append(data + bytes(padding))
        offset += len(data) + padding
    facts = json.dumps({**about, "arrays": places}).encode()
    facts += b" " * (-(len(facts)) % _ALIGNED)
    whole = b"".join([len(facts).to_bytes(_ALIGNED, "little"), facts, *blocks])
    return base64.b64encode(gzip.compress(whole, compresslevel=6, mtime=0)).decode()

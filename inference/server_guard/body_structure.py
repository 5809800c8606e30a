"""Limit the numbers of objects, lists and elements of a JSON body.

vLLM's routes parse and validate a body on the event loop, in a time that grows with these numbers. Within 8 MiB, a body
could have 2.7 million objects, or 250,000 messages.
"""

import numpy as np

UNCHECKED_BYTES = 2**15  # bodies up to this length are parsed quickly and are not checked
MAX_OBJECTS = 2**14  # also the maximum number of lists
MAX_ELEMENTS = 2**18  # keys of objects and items of lists, such as token ids


def structure_error(body: bytes) -> str | None:
    """Return an error message if a JSON text exceeds one of the limits, else None."""
    if len(body) <= UNCHECKED_BYTES:
        return None
    limits = {"objects": MAX_OBJECTS, "lists": MAX_OBJECTS, "elements": MAX_ELEMENTS}
    for kind, count in count_structure(body).items():
        if count > limits[kind]:
            unit = "elements (keys and list items)" if kind == "elements" else kind
            return f"the body has {count} {unit}; send at most {limits[kind]} at once"
    return None


def count_structure(body: bytes) -> dict[str, int]:
    """Return the numbers of objects, lists and elements of a JSON text.

    Brackets and commas are counted, except in strings. The elements (keys of objects and items of lists) are counted as
    objects + lists + commas, so an empty object or list counts as one element.

    Takes about 20 ms per MiB, and holds the GIL for a small part of this time.
    """
    text = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_outside = np.cumsum(text == ord('"'), dtype=np.uint8) & 1 == 0
    objects, lists, commas = (int(np.count_nonzero(is_outside & (text == ord(sign)))) for sign in "{[,")
    return {"objects": objects, "lists": lists, "elements": objects + lists + commas}

# SPDX-License-Identifier: BSD-3-Clause
"""Raw samples: what a user passes as X, turned lazily into pixels or texts, and into keys.

The first room of the flow: backbones ask it for decoded images, stores for the key of a sample.
Nothing here knows of networks or features.
"""

from skpool.inputs._decode import DecodeError, decode_image
from skpool.inputs._image_sequence import ImageSequence
from skpool.inputs._keys import sample_key
from skpool.inputs._text_sequence import TextSequence, text_key
from skpool.inputs._views import VIEWS, image_views, view_sequence

__all__ = [
    "VIEWS",
    "DecodeError",
    "ImageSequence",
    "TextSequence",
    "decode_image",
    "image_views",
    "sample_key",
    "text_key",
    "view_sequence",
]

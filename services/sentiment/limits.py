"""Bounds on what one request may ask of the sentiment service. The protos state them too."""

TEXTS_MAX = 256
"""Texts in one `Classify`."""

TEXTS_AT_ONCE = 16
"""Texts of one `Classify` that are in the queue of the model at a time, so that it does not crowd out streams."""

TEXT_BYTES_MAX = 262_144
"""Bytes, in UTF-8, of one text of `Classify`."""

PIECE_BYTES_MAX = 65_536
"""Bytes of one piece of `StreamingClassify`."""

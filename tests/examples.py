"""How many examples a property is tested on: 100, or as many as ``PROPERTY_EXAMPLES`` says (``make test-slow``)."""

import os

from hypothesis import settings

USUAL = 100
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", USUAL))


def costly(usual: int) -> settings:
    """Return the settings of a property of which one example takes long: fewer than 100 usually, and in proportion."""
    return settings(max_examples=max(1, usual * EXAMPLES // USUAL))

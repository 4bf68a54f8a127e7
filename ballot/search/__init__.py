"""One search, from its plan to its end; `from ballot import search` is `ballot.api.search`.

The package and the function have one name. The package can therefore be called, in whatever order
the two are imported.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballot.api import Answer


class CallablePackage(types.ModuleType):
    """This package, which searches where it is called."""

    def __call__(self, data_dir: Any, **options: Any) -> Answer:
        """Search for the best classifier of a folder of images: see `ballot.api.search`."""
        from ballot.api import search

        return search(data_dir, **options)


sys.modules[__name__].__class__ = CallablePackage

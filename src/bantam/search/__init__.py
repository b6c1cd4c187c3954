"""Search with Optuna. The package can be called: `bantam.search("hparams_search=optuna", n_trials=10)`."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bantam.search.python import Study


class _Search(ModuleType):
    """A package that is also the function of its name."""

    def __call__(self, *overrides: str, **settings: Any) -> "Study":
        """Search; see `bantam.search.python.search`."""
        from bantam.search.python import search  # loads PyTorch and Optuna

        return search(*overrides, **settings)


sys.modules[__name__].__class__ = _Search

"""What all workers need, imported and registered with Hydra before the first of them is forked."""

import atexit
import importlib
import os
import sys

from bantam import cluster, config
from bantam.search import processes, sweeper

NEEDED = (
    "bantam.search.worker",
    "alembic.command",
    "alembic.config",
    "alembic.migration",
    "alembic.script",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
)
"""Our own, and what Optuna's storage imports when it is first used."""

with processes.imports():
    for name in NEEDED:
        importlib.import_module(name)
    for module in (config, sweeper, cluster):
        module.register()
if "multiprocessing.forkserver" in sys.orig_argv[-1]:
    # Whoever reads the output of a search waits for the end of this process too: nothing is taken apart then.
    atexit.register(os._exit, 0)

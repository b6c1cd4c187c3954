"""What all workers need, imported and registered with Hydra before the first of them is forked."""

import gc
import importlib

from bantam import cluster, config
from bantam.search import sweeper

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

gc.disable()  # what is imported stays: not to be looked at, here or in a worker
for name in NEEDED:
    importlib.import_module(name)
for module in (config, sweeper, cluster):
    module.register()
gc.freeze()
gc.enable()

"""What all workers need, imported and registered with Hydra before the first of them is forked."""

import importlib

from bantam import cluster, config
from bantam.search import sweeper, worker

__all__ = ["worker"]

LATE = (
    "torch._dynamo",
    "alembic.command",
    "alembic.config",
    "alembic.migration",
    "alembic.script",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
)
"""What PyTorch's optimizers and Optuna's storage import when they are first used."""

for name in LATE:
    importlib.import_module(name)
for module in (config, sweeper, cluster):
    module.register()

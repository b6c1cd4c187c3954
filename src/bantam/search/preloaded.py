"""What all workers need, imported and registered with Hydra before the first of them is forked."""

import atexit
import importlib
import os
import sys
from contextlib import suppress

from bantam import cluster, config
from bantam.search import processes, sweeper

with processes.imports():
    importlib.import_module("bantam.search.worker")
    with suppress(Exception):  # whoever needs a storage says what is wrong with it
        # One imports much when it is first used, and is quicker the next time: this one is in memory.
        storage = importlib.import_module("optuna.storages").RDBStorage("sqlite://")
        storage.remove_session()
        storage.engine.dispose()
    for module in (config, sweeper, cluster):
        module.register()
if "multiprocessing.forkserver" in sys.orig_argv[-1]:  # python -c 'from multiprocessing.forkserver import main; …'
    # Whoever reads the output of a search waits for the end of this process too: nothing is taken apart then.
    atexit.register(os._exit, 0)

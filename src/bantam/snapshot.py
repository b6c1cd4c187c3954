"""Option files as they were when a command was typed: what is edited afterwards changes no later job or trial."""

import builtins
import os
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource

from bantam import option_files, overrides
from bantam.own import code, source
from bantam.own.source import OwnNetworks, Typed


class Snapshot(ConfigRepository):
    """Hydra's repository of options, with the contents of all files as they are when it is made.

    It can be pickled, so that jobs in other processes compose from the same contents.
    """

    def __init__(self, search_path: ConfigSearchPath, networks: Typed | None = None) -> None:
        """Read the folders of a search path; those of `hydra.searchpath` are read when they are first used.

        `networks` are those of one's own, as far as they were read before.
        """
        self.search_path, self.folders = search_path, Folders()
        self.networks = source.typed(overrides.typed()) if networks is None else networks
        super().__init__(search_path)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Take the contents of folders that were read before, and read the others."""
        super().initialize_sources(config_search_path)
        self.sources = [
            Kept(each, self.folders.read(each.path)) if isinstance(each, FileConfigSource) else each
            for each in self.sources
        ]
        for each in self.sources:
            if isinstance(each, OwnNetworks):
                each.typed = self.networks


class Folders(dict[str, dict[str, bytes | None]]):
    """By folder: its YAML files under their paths in it, and None for folders."""

    def __deepcopy__(self, memo: Any) -> "Folders":
        """Hydra copies its repository for every job: what is read once is the same for all."""
        return self

    def read(self, folder: str) -> dict[str, bytes | None]:
        """The contents of a folder, read once."""
        if folder not in self:
            self[folder] = _read(Path(folder))
        return self[folder]


class Kept(option_files.FileConfigSource):
    """A folder of options that is in memory."""

    def __init__(self, own: ConfigSource, entries: dict[str, bytes | None]) -> None:
        """Stand in for Hydra's own source of the same folder."""
        super().__init__(own.provider, own.path)
        self.entries = entries

    def __deepcopy__(self, memo: Any) -> "Kept":
        """It does not change."""
        return self

    def load_config(self, config_path: str) -> ConfigResult:
        """Read an option, with the header of its file."""
        content = self.entries.get(os.path.normpath(self._normalize_file_name(config_path)))
        if content is None:
            raise ConfigLoadError(f"Config not found : {self.path}/{config_path}")
        return self.result(content, os.path.join(self.path, self._normalize_file_name(config_path)))

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder."""
        return self.entries.get(os.path.normpath(config_path), b"") is None

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file."""
        return self.entries.get(os.path.normpath(self._normalize_file_name(config_path))) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """The options and groups in a group."""
        group = os.path.normpath(config_path)
        files: list[str] = []
        for entry in self.entries:
            if entry != "." and (os.path.dirname(entry) or ".") == group:
                self._list_add_result(files, entry, os.path.basename(entry), results_filter)
        return sorted(set(files))


def _read(folder: Path) -> dict[str, bytes | None]:
    """The YAML files and folders in a folder, without what is hidden and without folders of runs."""
    entries: dict[str, bytes | None] = {}
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (".hydra" in folders and place != str(folder)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        entries[os.path.relpath(place, folder)] = None
        for name in names:
            if name.endswith(".yaml"):
                path = Path(place, name)
                if path.is_file() and os.access(path, os.R_OK):
                    entries[os.path.relpath(path, folder)] = path.read_bytes()
    return entries


def take(loader: ConfigLoader) -> Snapshot:
    """Have Hydra compose from the option files as they are now; returns what it composes from."""
    impl: Any = loader  # of `hydra._internal`: Hydra has no public way to it
    if not isinstance(impl.repository, Snapshot):
        own = (each for each in impl.repository.get_sources() if isinstance(each, OwnNetworks))
        impl.repository = Snapshot(impl.config_search_path, next((each.typed for each in own), None))
    kept: Snapshot = impl.repository
    return kept


def give(loader: ConfigLoader, snapshot: Snapshot) -> None:
    """Have Hydra compose from a snapshot that another process has taken; its networks may be imported here too."""
    impl: Any = loader
    impl.repository = snapshot
    for own in snapshot.networks.values():
        if not isinstance(own, str):  # why it cannot be had
            code.allow(own)

"""Files of options: those that a search writes have a last line, so that one that is cut off is not composed.

Such a file is YAML still, and says less: what it lacks would be trained with defaults.
"""

import io
import os

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

FIRST = "# @last_line whole\n"
"""A line of the header, of which Hydra takes the package only."""

LAST = "# whole\n"


def marked(text: str) -> str:
    """The text of a file of options with a first line that announces the last one."""
    return f"{FIRST}{text}{LAST}"


def is_cut(text: str) -> bool:
    """Whether this is the beginning of a marked file; one without the first line is somebody else's."""
    lines = text.replace("\r\n", "\n")
    begins = lines.startswith(FIRST) or (lines != "" and FIRST.startswith(lines))
    return begins and not lines.rstrip().endswith(f"\n{LAST}".rstrip())


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's folder of options, without files that are cut off.

    It has the name of Hydra's own, which Hydra then leaves out, in other processes too.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """Read an option. Raises ValueError for one that is cut off."""
        full_path = os.path.join(self.path, self._normalize_file_name(config_path))
        if not os.path.exists(full_path):
            raise ConfigLoadError(f"Config not found : {full_path}")
        with open(full_path, "rb") as file:
            return self.result(file.read(), full_path)

    def result(self, content: bytes, full_path: str) -> ConfigResult:
        """What Hydra gets of a file with this content; errors name `full_path` as the file."""
        text = content.decode()
        if is_cut(text):
            raise ValueError("it is cut off: its last line is missing")
        return ConfigResult(
            config=OmegaConf.load(io.StringIO(text)),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text[:512]),
        )


def register() -> None:
    """Have Hydra read folders of options so."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource

import json
from pathlib import Path
from typing import Any

import pytest

from bantam.training.exported import read_export, write_export

PART = {"weight_bytes": 5581, "accuracy": 99.4}
SOUND = {"float32": PART, "int8": PART}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_export(tmp_path) is None
    write_export(tmp_path, SOUND)
    assert read_export(tmp_path) == SOUND


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"5",
        b"null",
        b'{"float32": {}}',
        json.dumps({"float32": PART}).encode(),
        *(
            json.dumps({**SOUND, "int8": {**PART, **change}}).encode()
            for change in ({"accuracy": 101}, {"accuracy": "99"}, {"weight_bytes": 5.5}, {"weight_bytes": None})
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "export.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"export.json is damaged \(.*\): export the run again with .*restore it"
    ) as e:
        read_export(tmp_path)
    assert "\n" not in str(e.value)


def test_a_folder_of_that_name_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "export.json").mkdir()
    with pytest.raises(ValueError, match=r"export.json cannot be read \(Is a directory\)"):
        read_export(tmp_path)


def test_more_is_no_damage(tmp_path: Path) -> None:
    answer: dict[str, Any] = {**SOUND, "later": [1]}
    write_export(tmp_path, answer)
    assert read_export(tmp_path) == answer

"""`proglog verify` and `proglog repair`: what they say, and their exit statuses."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from crc32c import crc32c

from proglog.cli.app import run
from proglog.log.names import index_name, store_name
from proglog.log.verify import verify
from tests.doubles.disk import SimDisk
from tests.log.small import FOLDER, small
from tests.log.support import flip
from tests.log.test_verify import readable_for_all
from tests.log.test_verify import run as run_as_nobody

DONE, FAILED, MISUSED, UNKNOWN_FORMAT = range(4)


def on_disk(disk: SimDisk, data_dir: Path) -> Path:
    """The files of a simulated disk, real; the folder of the log."""
    for path, data in disk.files().items():
        target = data_dir / path.relative_to("/data")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return data_dir / FOLDER.relative_to("/data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return on_disk(small(), tmp_path)


@pytest.fixture
def data_dir(folder: Path) -> Path:
    return folder.parent.parent


def damage(folder: Path) -> Path:
    """Batch 6, of offsets 9 to 9 or so, in a sealed segment."""
    path = folder / store_name(5)
    flip(path, 16504 + 75)
    return path


def test_a_whole_log(data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(data_dir)]) == DONE
    said = capsys.readouterr().out
    assert said == f"{folder}: 3 segments, 11 batches, 21 records, 1.2 KiB: whole\n"
    assert run(["repair", str(data_dir)]) == DONE
    assert capsys.readouterr().out == f"{folder}: nothing to repair\n"


def test_one_log_and_a_data_directory_say_the_same(
    data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data_dir / "groups" / "notes.txt").write_bytes(b"mine")
    damage(folder)
    said = []
    for directory in (data_dir, folder):
        assert run(["verify", str(directory)]) == FAILED
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_damaged_batch(data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(folder)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    assert run(["verify", str(data_dir)]) == FAILED
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path} at 16504, from offset 9 to 9: the batch is damaged: ")
    assert first.endswith("(unreadable)")
    assert last.endswith("damaged")
    assert run(["verify", str(data_dir), "--json"]) == FAILED
    report = orjson.loads(capsys.readouterr().out)
    assert report["damaged"] is True
    (entry,) = report["entries"]
    assert entry["file"] == str(path)
    assert (entry["position"], entry["verdict"]) == (16504, "unreadable")
    assert (entry["first_offset"], entry["last_offset"]) == (9, 9)
    assert run(["repair", str(data_dir)]) == FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"{path} at 16504" in said.err
    assert "--give-up-damaged" in said.err
    assert "--cut-damaged" in said.err
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize("json", [False, True], ids=["for people", "json"])
def test_giving_up(
    data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], json: bool
) -> None:
    path = damage(folder)
    done = f"{path.name}: a gap stands for batch 6: offsets 9 to 9 are lost"
    words = ["repair", str(data_dir), "--give-up-damaged", *(["--json"] if json else [])]
    assert run(words) == DONE
    said = capsys.readouterr().out
    if json:
        assert orjson.loads(said) == {"folder": str(folder), "done": [done]}
    else:
        assert said == f"{folder}: {done}\n"
    assert run(["verify", str(data_dir)]) == DONE
    assert capsys.readouterr().out.endswith(": whole\n")


def test_cutting(data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(folder)
    assert run(["repair", str(data_dir), "--cut-damaged"]) == DONE
    said = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{folder}: ") for line in said)
    assert said[-1] == f"{folder}: the log ends at offset 9 now"
    assert run(["verify", str(data_dir)]) == DONE
    assert verify(folder).batches == 5
    assert list(folder.glob("aside-*"))


def test_one_way_to_lose_records_at_a_time(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["repair", str(data_dir), "--cut-damaged", "--give-up-damaged"]) == MISUSED
    assert "exclude each other" in capsys.readouterr().err


def test_what_the_next_start_does(
    data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / index_name(1)).unlink()
    assert run(["verify", str(data_dir)]) == DONE
    said = capsys.readouterr().out
    assert "the index is built anew from its store (rewritten)" in said
    assert said.endswith(": whole\n")
    assert run(["repair", str(data_dir)]) == DONE
    assert capsys.readouterr().out == f"{folder}: the next start does the rest\n"


@pytest.mark.parametrize("file", ["manifest", "hard-state", store_name(9), index_name(5)])
@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["repair"],
        ["repair", "--give-up-damaged"],
        ["repair", "--cut-damaged"],
        ["serve"],
    ],
    ids=" ".join,
)
def test_another_version(
    folder: Path,
    data_dir: Path,
    command: list[str],
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = folder / file
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[12:16], "little")
    data[8:10], data[20:24] = (3).to_bytes(2, "little"), bytes(4)
    data[20:24] = crc32c(bytes(data[:length])).to_bytes(4, "little")
    path.write_bytes(data)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    name, *options = command
    words = ["--data-dir", str(data_dir), "--rpc-port", "0", "--http-addr", "none"]
    assert run([name, *(words if name == "serve" else [str(data_dir)]), *options]) == UNKNOWN_FORMAT
    said = capsys.readouterr()
    assert f"{path} has format version 3" in said.err
    assert "Nothing was changed" in said.err
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_what_is_no_log(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, str(tmp_path)]) == MISUSED
    assert "no log's directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["", "--give-up-damaged", "--cut-damaged"])
def test_a_repair_without_write_access_says_so(folder: Path, option: str) -> None:
    damage(folder)
    with readable_for_all(folder) as copy:
        before = {each.name: each.read_bytes() for each in copy.iterdir()}
        ran = run_as_nobody("repair", str(copy), *filter(None, [option]))
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.count("\n") == 1
        assert str(copy) in ran.stderr
        assert {each.name: each.read_bytes() for each in copy.iterdir()} == before


def test_a_directory_that_lost_its_node_file_is_not_called_repaired(
    data_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node does not start, whatever becomes of its log."""
    (data_dir / "node").write_bytes(bytes(8192))
    assert run(["repair", str(data_dir)]) == FAILED
    said = capsys.readouterr()
    assert said.out == f"{folder}: nothing to repair\n"
    assert f"{data_dir / 'node'} at 0" in said.err
    assert run(["verify", str(data_dir)]) == FAILED

"""Whatever a program left is removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from geostudio_dagster.removal import remove_tree


def deep(folder: Path, levels: int) -> None:
    """Folders within each other, made as a script makes them: one at a time."""
    parent = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=parent)
        child = os.open("d", os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=parent))
    os.close(parent)


def test_a_tree_deeper_than_any_path_goes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "one").mkdir(parents=True)
    (folder / "two").mkdir()
    deep(folder / "one", 3000)
    deep(folder / "two", 3000)
    remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


def test_links_go_and_what_they_stand_for_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "link").symlink_to(kept)
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    remove_tree(folder)
    (tmp_path / "itself").symlink_to(kept)
    remove_tree(tmp_path / "itself")
    remove_tree(tmp_path / "absent")
    assert (kept / "file").read_text() == "mine"
    assert not folder.exists()


def test_closed_folders_are_opened_by_whom_they_belong_to(tmp_path: Path) -> None:
    closed = tmp_path / "folder" / "closed"
    (closed / "within").mkdir(parents=True)
    (closed / "within" / "file").touch()
    for path in (closed / "within", closed, closed.parent):
        path.chmod(0)
    program = "import sys, pathlib; from geostudio_dagster.removal import remove_tree; "
    program += "remove_tree(pathlib.Path(sys.argv[1]))"
    # Without the right of root to go everywhere.
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-c", program, str(closed.parent)]
    subprocess.run(command, check=True)
    assert not closed.parent.exists()

"""What the file system of a folder can do, whatever machine the tests run on."""

from __future__ import annotations

import subprocess
from pathlib import Path

_WITH_PAGE_CACHE = {"ext2/ext3", "xfs", "btrfs", "f2fs"}


def has_page_cache(folder: Path) -> bool:
    """Whether the kernel keeps the files of a folder in its page cache, and tells what is there."""
    ran = subprocess.run(
        ["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip() in _WITH_PAGE_CACHE

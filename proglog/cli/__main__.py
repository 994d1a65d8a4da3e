"""`python -m proglog.cli` is `proglog`."""

from __future__ import annotations

import sys

from proglog.cli import main

sys.exit(main())

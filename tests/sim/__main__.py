"""Runs simulated worlds for some time, or one of them.

python -m tests.sim [--seconds N] [--first S] [--nodes N]
python -m tests.sim --seed S [--keep 1,5,7] [--events]
"""

from __future__ import annotations

import sys

from tests.sim.command import main

sys.exit(main())

"""The tool that makes mutants by rule."""

from __future__ import annotations

import ast

from tests.mutants.mutate import mutants

SOURCE = '''"""A module."""


class Counter:
    """Counts é."""

    def add(self, number: int = 1) -> bool:
        assert number > 0, "é"
        if number < 5 and not self.full:
            self.count += number
            self.last = max(number, self.last)
            return True
        return False

    async def wait(self) -> None:
        await self.event.wait()
'''


def test_each_mutant_is_one_change_of_a_file_that_still_parses() -> None:
    found = list(mutants(SOURCE))
    for mutant in found:
        ast.parse(mutant.source)
        assert mutant.source != SOURCE
        assert len(set(mutant.source.splitlines()) ^ set(SOURCE.splitlines())) <= 2
    assert [(each.line, each.was, each.now) for each in found] == [
        (7, "1", "(2)"),
        (9, "number < 5 and (not self.full)", "(number < 5 or not self.full)"),
        (9, "number < 5", "(number <= 5)"),
        (9, "5", "(6)"),
        (9, "not self.full", "(self.full)"),
        (10, "self.count += number", "pass"),
        (11, "self.last = max(number, self.last)", "pass"),
        (11, "max(number, self.last)", "(min(number, self.last))"),
        (12, "True", "(False)"),
        (13, "False", "(True)"),
        (16, "await self.event.wait()", "pass"),
    ]

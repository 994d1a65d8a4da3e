"""Stock Serf agents (Debian's `serf`) as processes on 127.0.0.1, and how to wait for things."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import judges
from tests.ports import free_port
from tests.waiting import until


@dataclass
class Agent:
    """One `serf agent`."""

    name: str
    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    async def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.process = await asyncio.create_subprocess_exec(
                judges.program("serf"),
                "agent",
                f"-node={self.name}",
                f"-bind={self.address}",
                f"-rpc-addr=127.0.0.1:{self.rpc_port}",
                "-profile=local",
                "-log-level=debug",
                *self.options,
                stdout=log,
                stderr=log,
            )
        await until(self._answers, f"agent {self.name} answers\n{self.log}")

    async def _answers(self) -> bool:
        code, _ = await self.run("info")
        return code == 0

    async def run(self, *arguments: str) -> tuple[int, str]:
        command, *rest = arguments
        process = await asyncio.create_subprocess_exec(
            judges.program("serf"),
            command,
            f"-rpc-addr=127.0.0.1:{self.rpc_port}",
            *rest,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def command(self, *arguments: str) -> str:
        code, output = await self.run(*arguments)
        assert code == 0, f"serf {' '.join(arguments)}: {output}"
        return output

    async def members(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(await self.command("members", "-format=json"))["members"]
        return {member["name"]: member for member in listed}

    async def sees(self, name: str, status: str) -> bool:
        return (await self.members()).get(name, {}).get("status") == status

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@contextlib.asynccontextmanager
async def agents(folder: Path, *names: str, options: tuple[str, ...] = ()) -> AsyncIterator[Any]:
    """Running agents, the first of which the others have joined."""
    started = [Agent(name, folder, options) for name in names]
    try:
        for agent in started:
            await agent.start()
        for agent in started[1:]:
            await agent.command("join", started[0].address)
        yield started[0] if len(started) == 1 else started
    finally:
        for agent in started:
            await agent.kill()

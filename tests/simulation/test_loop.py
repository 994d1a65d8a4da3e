"""Virtual time: what happens, in which order, and that a seed decides it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doubles.loop import Deadlock, SimClock, SimLoop, TraceHash, run
from tests.doubles.worker import SimWorker


def loop_now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeping_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(86_400 * 365)
        return loop_now()

    began = time.monotonic()
    assert run(main()) == pytest.approx(86_400 * 365)
    assert time.monotonic() - began < 5


def test_timers_of_one_time_keep_their_order() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        for number in range(500):
            loop.call_at(1.0, seen.append, number)
        await asyncio.sleep(2)
        return seen

    assert run(main()) == list(range(500))


def test_a_timeout_fires_at_its_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.5):
                await asyncio.Event().wait()
        return loop_now()

    assert run(main()) == pytest.approx(3.5)


def test_a_deadlock_is_told() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())


def test_what_nobody_handles_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        run(main())


def test_threads_are_events() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.to_thread(lambda: 42) == 42
        assert 0 < loop.time() < 0.01
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        woken = loop.create_future()
        loop.call_soon_threadsafe(woken.set_result, 1)
        assert await woken == 1

    run(main())


def test_the_clock_jumps_and_the_loop_does_not() -> None:
    async def main() -> None:
        clock = SimClock(1000)
        await asyncio.sleep(2)
        assert clock.now_ms() == 3000
        clock.offset_ms -= 5000
        assert clock.now_ms() == -2000
        assert loop_now() == pytest.approx(2)

    run(main())


async def race() -> tuple[str, str]:
    """Tasks that are all ready at once, on a network, and the hash of what they did."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    order: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            order.append(line.decode())
            writer.write(line)
        writer.close()

    async def call(name: str) -> None:
        reader, writer = await asyncio.open_connection("localhost", port)
        for number in range(3):
            writer.write(f"{name}{number}\n".encode())
            await reader.readline()
            order.append(name)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "localhost", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.gather(*(call(name) for name in "abcde"))
    server.close()
    await asyncio.sleep(1)
    loop.trace.add(order)
    return loop.trace.hexdigest(), " ".join(order)


def test_the_seed_decides_everything() -> None:
    runs = {seed: run(race(), seed=seed, shuffle=True) for seed in range(5)}
    assert len(set(runs.values())) == 5
    for seed, result in runs.items():
        assert run(race(), seed=seed, shuffle=True) == result


def test_hash_seeds_change_nothing() -> None:
    program = (
        "from tests.simulation.test_loop import race; from tests.doubles.loop import run;"
        "print(run(race(), seed=9, shuffle=True))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_shuffling_reorders_tasks_but_not_callbacks() -> None:
    async def main() -> tuple[list[int], list[int]]:
        tasks: list[int] = []
        callbacks: list[int] = []

        async def step(number: int) -> None:
            tasks.append(number)

        loop = asyncio.get_running_loop()
        made = []
        for number in range(20):
            made.append(loop.create_task(step(number)))
            loop.call_soon(callbacks.append, number)
        await asyncio.gather(*made)
        return tasks, callbacks

    tasks, callbacks = run(main(), shuffle=True)
    assert callbacks == sorted(callbacks)
    assert tasks != sorted(tasks)
    assert sorted(tasks) == list(range(20))


def test_a_trace_hash_tells_order() -> None:
    one, other, same = TraceHash(), TraceHash(), TraceHash()
    for trace, events in ((one, "ab"), (other, "ba"), (same, "ab")):
        for event in events:
            trace.add(event, 1)
    assert one.hexdigest() == same.hexdigest() != other.hexdigest()


# --- the worker ----------------------------------------------------------------------------------


async def use_worker(worker: SimWorker) -> None:
    done: list[str] = []
    again = True

    def step() -> None:
        nonlocal again
        assert not done or done[-1] == "end", "never twice at a time"
        done.append("begin")
        if again:
            again = False
            worker.wake()
        done.append("end")

    worker.wake()
    worker.start(step)
    assert not done, "not within the caller"
    await asyncio.sleep(0.05)
    assert done.count("end") == 2, "a wake during a step brings another one"
    worker.wake()
    worker.wake()
    await asyncio.sleep(0.05)
    assert done.count("end") == 3
    worker.wake()
    worker.stop()
    assert done.count("end") == 4, "what was woken is done before the end"
    worker.wake()
    await asyncio.sleep(0.05)
    assert done.count("end") == 4


def test_a_worker_on_the_simulated_loop() -> None:
    run(use_worker(SimWorker("disk", chance=random.Random(1), delay_seconds_max=0.01)))
    run(use_worker(SimWorker("disk")))


async def test_a_worker_on_a_real_loop() -> None:
    await use_worker(SimWorker("disk"))


def test_a_killed_worker_does_not_run_what_was_woken() -> None:
    async def main() -> None:
        worker = SimWorker("disk")
        worker.start(lambda: pytest.fail("it was killed"))
        worker.wake()
        worker.kill()
        worker.stop()
        await asyncio.sleep(1)

    run(main())

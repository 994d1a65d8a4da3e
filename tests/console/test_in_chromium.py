"""The console of three real nodes in a real browser, while the leader is killed.

`make console` runs it; with `PROGLOG_PICTURES=FOLDER` it leaves its screenshots there.
"""

from __future__ import annotations

import os
from pathlib import Path

import proglog
from tests.cluster.harness import processes
from tests.console.browser import page

HOSTILE = b'<img src=x onerror="document.title=`broken`"><script>document.title=`broken`</script>'


async def test_an_operator_sees_what_is_true(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("PROGLOG_PICTURES") or tmp_path)
    async with processes(tmp_path, 3) as cluster, page(tmp_path / "browser") as shown:
        leader = await cluster.leader()
        watched = next(server for server in cluster.servers if server is not leader)
        async with proglog.connect(cluster.url) as log:
            await log.produce(HOSTILE, key=b"</script>", headers={"<b>": b"<i>"})
            await log.produce_many([b'{"order": 1, "paid": true}'] * 200)
            await log.produce(bytes(range(256)))
        await shown.size(1440, 900, "light")
        await shown.open(f"http://{watched.address}/")
        await shown.shows("All is well")
        await shown.shows("3 of 3 voters")
        await shown.picture(pictures / "overview-desktop-light.png")

        await shown.open(f"http://{watched.address}/#/records")
        await shown.shows('{"order": 1, "paid": true}')
        await shown.run("document.querySelector('tbody tr').click()")
        await shown.shows("000000  00 01 02 03")
        await shown.run("document.querySelector('[title=Earliest]').click()")
        await shown.shows("<img src=x")
        await shown.run("document.querySelector('tbody tr:last-child').click()")
        await shown.shows("</script>")
        assert await shown.run("document.images.length") == 1  # ours
        assert "broken" not in await shown.run("document.title")
        await shown.size(390, 844, "dark")
        await shown.run("document.querySelector('.detail [aria-label=Close]').click()")
        await shown.picture(pictures / "records-phone-dark.png")
        assert await shown.run("document.documentElement.scrollWidth") <= 390

        await shown.open(f"http://{watched.address}/#/overview")
        await leader.kill()
        await shown.shows(f"{leader.name} does not answer")
        await shown.shows("If one more fails, writes stop.")
        await shown.picture(pictures / "leader-killed-phone-dark.png")
        for other in cluster.servers:
            if other is not watched and other.is_running:
                await other.kill()
        await shown.shows("No leader: nothing can be written")
        assert not shown.errors
        await watched.kill()
        await shown.shows("This node does not answer")

from __future__ import annotations

import asyncio
import resource

from proxy_vpn.daemon.served import DESCRIPTORS_RESERVED, ServedFlows, raise_descriptor_limit

ONE, TWO = b"1" * 32, b"2" * 32


def test_the_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    limit = raise_descriptor_limit()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limit == soft or soft == resource.RLIM_INFINITY


def test_no_peer_takes_all_and_ended_flows_count_no_more() -> None:
    async def main() -> None:
        served = ServedFlows(DESCRIPTORS_RESERVED + 8)
        gate = asyncio.Event()

        async def flow() -> None:
            await gate.wait()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                assert served.admits(ONE)
                group.create_task(served.counting(ONE, flow()))
                await asyncio.sleep(0)
            assert not served.admits(ONE)
            for _ in range(4):
                assert served.admits(TWO)
                group.create_task(served.counting(TWO, flow()))
                await asyncio.sleep(0)
            assert not served.admits(b"3" * 32)
            gate.set()
        assert served.admits(ONE)

    asyncio.run(main())


def test_a_few_descriptors_still_serve_something() -> None:
    assert ServedFlows(10).limit == 1

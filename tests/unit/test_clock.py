"""The store's clock never goes back, whatever the wall clock does."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from inmem.host.clock import StoreClock, boot_us, wall_us

SECOND = 1_000_000


class Time:
    """A wall clock that can be set, and a boot clock that cannot."""

    def __init__(self, wall: int = 1000 * SECOND, boot: int = 10 * SECOND) -> None:
        self.wall = wall
        self.boot = boot

    def pass_us(self, count: int) -> None:
        self.wall += count
        self.boot += count

    def clock(self, floor: int = 0, offset: int | None = None) -> StoreClock:
        return StoreClock(floor, offset=offset, wall=lambda: self.wall, boot=lambda: self.boot)


def test_it_is_the_wall_clock_to_begin_with() -> None:
    now = Time()
    clock = now.clock()
    assert clock.now_us() == now.wall
    now.pass_us(7)
    assert clock.now_us() == now.wall


def test_a_wall_clock_set_back_changes_nothing() -> None:
    now = Time()
    clock = now.clock()
    now.wall -= 500 * SECOND
    assert clock.now_us() == 1000 * SECOND
    clock.follow_wall()
    now.pass_us(SECOND)
    assert clock.now_us() == 1001 * SECOND


def test_a_wall_clock_set_forward_is_followed_at_the_next_tick() -> None:
    now = Time()
    clock = now.clock()
    now.wall += 100 * SECOND
    assert clock.now_us() == 1000 * SECOND
    assert clock.follow_wall() == clock.offset
    assert clock.now_us() == 1100 * SECOND


def test_time_goes_on_above_what_was_recorded() -> None:
    """The wall clock was set back while no writer ran."""
    clock = Time(wall=500 * SECOND).clock(floor=1000 * SECOND)
    assert clock.now_us() == 1000 * SECOND + 1


def test_time_goes_on_after_a_reboot() -> None:
    before = Time()
    recorded = before.clock().now_us()
    after = Time(wall=before.wall - 3600 * SECOND, boot=1)
    assert after.clock(floor=recorded).now_us() > recorded


def test_readers_of_this_boot_have_seen_times_with_the_old_offset() -> None:
    now = Time()
    old = now.clock()
    now.wall -= 100 * SECOND
    now.pass_us(SECOND)
    new = now.clock(floor=0, offset=old.offset)
    assert new.now_us() == old.now_us()
    assert now.clock(floor=0, offset=0).now_us() == now.wall


@given(st.lists(st.tuples(st.sampled_from(["pass", "set", "tick", "restart", "reboot"]),
                          st.integers(-(10**9), 10**9)), max_size=30))
def test_never_backwards(steps: list[tuple[str, int]]) -> None:
    now = Time()
    clock = now.clock()
    last = clock.now_us()
    for step, amount in steps:
        if step == "pass":
            now.pass_us(abs(amount))
        elif step == "set":
            now.wall += amount
        elif step == "tick":
            clock.follow_wall()
        elif step == "restart":
            clock = now.clock(floor=last, offset=clock.offset)
        else:
            now.boot = abs(amount)
            clock = now.clock(floor=last)
        assert clock.now_us() >= last
        last = clock.now_us()


def test_the_real_clocks() -> None:
    before, around = boot_us(), time.time() * 1e6
    assert abs(wall_us() - around) < 60 * SECOND
    assert boot_us() >= before
    clock = StoreClock(0)
    assert abs(clock.now_us() - wall_us()) < 60 * SECOND

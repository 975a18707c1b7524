"""Links without a key: for one thing, for a time, and the same while nothing changes."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.signing import Signer

DAY = timedelta(days=1)
MIDNIGHT = 1_700_006_400.0  # a multiple of 86,400


def test_links_asked_for_within_an_hour_are_the_same() -> None:
    tokens = {
        Signer(b"secret", lambda at=at: MIDNIGHT + at).sign("request:1", DAY)  # type: ignore[misc]
        for at in (0.0, 0.9, 1.0, 60.0, 3599.9)
    }
    assert len(tokens) == 1
    later = Signer(b"secret", lambda: MIDNIGHT + 3600)
    assert later.sign("request:1", DAY) not in tokens


@given(
    now=st.floats(1e9, 4e9),
    life=st.integers(1, 10**7).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_a_link_never_outlives_its_time_and_keeps_most_of_it(now: float, life: timedelta) -> None:
    time = now
    signer = Signer(b"secret", lambda: time)
    token = signer.sign("request:1", life)
    time = now + life.total_seconds()
    assert not signer.verify(token, "request:1")
    time = now + life.total_seconds() * 23 / 24 - 1.001
    assert signer.verify(token, "request:1")
    assert not signer.verify(token, "request:2")

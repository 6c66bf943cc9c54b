"""Schedules of snapshots: what is one, and which times it means, through every change of the clocks."""

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusevol.errors import InvalidArgument, NotSupported
from fusevol.mount.schedule import Rule, Schedule, parse_schedule

#: Zones that change their clocks by an hour, by half an hour, at midnight, never, and one that skipped a day.
ZONES = [
    ZoneInfo(name)
    for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata",
                 "Pacific/Apia", "Africa/Casablanca", "UTC")
]  # fmt: skip
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

minutes_of_day = st.tuples(st.integers(0, 23), st.integers(0, 59))
rules = st.one_of(
    st.builds(lambda at: Rule("daily", 1, hour=at[0], minute=at[1]), minutes_of_day),
    st.builds(lambda at, day: Rule("weekly", 1, day=day, hour=at[0], minute=at[1]), minutes_of_day, st.integers(0, 6)),
    st.builds(
        lambda at, day: Rule("monthly", 1, day=day, hour=at[0], minute=at[1]), minutes_of_day, st.integers(1, 31)
    ),
)
#: From 2005 to 2040, where all of these zones have changed their clocks.
moments = st.integers(1_100_000_000, 2_200_000_000)


def fits(rule: Rule, day: date) -> bool:
    """Whether the rule has a time on that day."""
    if rule.kind == "weekly":
        return day.weekday() == rule.day
    last = monthrange(day.year, day.month)[1]
    return rule.kind == "daily" or day.day == rule.day or (day.day == last and rule.day > last)


def moment_on(rule: Rule, day: date, zone: ZoneInfo) -> float:
    """The model: watch the clock on the wall, minute by minute, until it shows the rule's time or has skipped it."""
    wanted = datetime(day.year, day.month, day.day, rule.hour, rule.minute)
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() - 15 * 3600
    before = datetime.fromtimestamp(moment - 60, zone).replace(tzinfo=None)
    while True:
        shown = datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
        if shown == wanted:
            return moment
        if before < wanted < shown:
            # As much later as the clock was put forward.
            return moment + (wanted - before).total_seconds() - 60
        before = shown
        moment += 60


@given(rule=rules, moment=moments, zone=st.sampled_from(ZONES))
@example(rule=Rule("daily", 1, hour=2, minute=30), moment=1774745000, zone=ZONES[0])
@example(rule=Rule("daily", 1, hour=2, minute=30), moment=1792886400, zone=ZONES[0])
@example(rule=Rule("daily", 1, hour=0, minute=30), moment=1541300000, zone=ZONES[3])
@example(rule=Rule("weekly", 1, day=4, hour=12), moment=1325200000, zone=ZONES[5])
@settings(max_examples=60, deadline=None)
def test_the_next_time_is_the_one_that_the_clock_on_the_wall_tells(rule: Rule, moment: int, zone: ZoneInfo) -> None:
    day = datetime.fromtimestamp(moment, zone).date() - timedelta(days=2)
    while not fits(rule, day) or (expected := moment_on(rule, day, zone)) <= moment:
        day += timedelta(days=1)
    assert rule.after(moment, zone) == expected
    assert rule.after(expected - 1, zone) == expected


@given(every=st.integers(1, 527_040), moment=moments)
def test_a_periodic_rule_comes_every_so_many_minutes(every: int, moment: int) -> None:
    found = Rule("periodic", 5, every=every).after(moment)
    assert moment < found <= moment + every * 60
    assert found % (every * 60) == 0
    assert Rule("periodic", 5, every=every).after(found) == found + every * 60


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]


def test_a_time_that_the_clocks_skip_comes_an_hour_later_and_a_repeated_one_once() -> None:
    zone, rule = ZONES[0], Rule("daily", 7, hour=2, minute=30)
    # 29 March 2026: 2:00 becomes 3:00. 25 October: 3:00 becomes 2:00.
    times = [rule.after(at(2026, 3, 28, 12), zone)]
    for _ in range(2):
        times.append(rule.after(times[-1], zone))
    assert times == [at(2026, 3, 29, 1, 30), at(2026, 3, 30, 0, 30), at(2026, 3, 31, 0, 30)]
    times = [rule.after(at(2026, 10, 24, 12), zone)]
    times.append(rule.after(times[-1], zone))
    assert times == [at(2026, 10, 25, 0, 30), at(2026, 10, 26, 1, 30)]


def test_a_month_without_a_31st_has_its_last_day() -> None:
    rule, moment, found = parse_schedule("monthly=31@00:00").rules[0], at(2028, 1, 31), []
    for _ in range(3):
        moment = rule.after(moment, UTC)
        found.append(datetime.fromtimestamp(moment, UTC).date().isoformat())
    assert found == ["2028-02-29", "2028-03-31", "2028-04-30"]


def test_all_parts_of_a_schedule_count() -> None:
    text = " periodic=15 ; daily=@3:05,2; daily=15:00; weekly=SUNDAY@04:00;monthly=1@05:00,3"
    found = parse_schedule(text, interval=60)
    assert found == Schedule((
        Rule("interval", 5, every=60), Rule("periodic", 5, every=15), Rule("daily", 2, hour=3, minute=5),
        Rule("daily", 7, hour=15), Rule("weekly", 5, day=6, hour=4), Rule("monthly", 3, day=1, hour=5),
    ))  # fmt: skip
    assert found.keep == {"interval": 5, "periodic": 5, "daily": 9, "weekly": 5, "monthly": 3}
    noon = at(2026, 11, 21, 12)
    assert found.after(noon, zone=UTC) == at(2026, 11, 21, 12, 15)
    assert found.after(noon, "daily", UTC) == at(2026, 11, 21, 15)
    assert found.after(noon, "weekly", UTC) == at(2026, 11, 22, 4)


def test_no_schedule_has_no_times() -> None:
    assert parse_schedule("") == parse_schedule("  ") == Schedule()
    assert Schedule().after(0.0) is None
    assert Schedule().keep == {}


@pytest.mark.parametrize(
    "text",
    ["daily", "daily=", "daily=24:00", "daily=3", "daily=3:5", "daily=x@03:00", "daily=03:00,0", "daily=03:00,",
     "daily=03:00,-1", "daily=03:00,1,2", "daily=03:00;", ";", "weekly=03:00", "weekly=Caturday@03:00",
     "monthly=0@03:00",
     "monthly=32@03:00", "monthly=@03:00", "periodic=0", "periodic=1.5", "periodic=527041", "hourly=5", "DAILY=03:00",
     "daily=03:00;daily=@3:00,2", "periodic=9999999999999999999999", "daily=٣:00"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^snapshot_schedule: ") as caught:
        parse_schedule(text)
    assert "\n" not in str(caught.value)


def test_policies_are_not_supported() -> None:
    with pytest.raises(NotSupported, match="policy="):
        parse_schedule("daily=03:00;policy=gold,silver")


def test_an_interval_is_a_number_of_minutes_up_to_a_year() -> None:
    with pytest.raises(InvalidArgument, match=r"^snapshot_interval: "):
        parse_schedule("", interval=527_041)

"""The records of the volume model, and their JSON."""

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol import api
from fusevol.api import (
    ActiveRequest,
    ActiveRequests,
    AttachState,
    CosType,
    DriverType,
    FSType,
    HealthStatus,
    IoProfile,
    IoStrategy,
    IoThrottle,
    LocatorUpdate,
    Record,
    ScanAction,
    ScanPolicy,
    ScanTrigger,
    Secret,
    Source,
    SpecUpdate,
    Stats,
    Usage,
    Volume,
    VolumeConsumer,
    VolumeLocator,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
    from_json,
    to_json,
)
from fusevol.errors import InvalidArgument

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
MAX = 2**64 - 1

uint64 = st.integers(0, MAX)
texts = st.text(max_size=20)
maps = st.dictionaries(texts, texts, max_size=3)
names = st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
times = st.datetimes(timezones=st.just(UTC))

strategies: dict[type[Record], st.SearchStrategy[Any]] = {}


def _maybe_unset(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


strategies[Source] = st.builds(Source, parent=texts, seed=texts)
strategies[VolumeLocator] = st.builds(
    VolumeLocator,
    name=texts,
    volume_labels=maps,
    ownership=texts,
    group=texts,
    volume_ids=st.lists(texts, max_size=3).map(tuple),
)
strategies[IoThrottle] = st.builds(IoThrottle, **dict.fromkeys(IoThrottle.__struct_fields__, uint64))
strategies[IoStrategy] = st.builds(IoStrategy, **{f: st.booleans() for f in IoStrategy.__struct_fields__})
strategies[ScanPolicy] = st.builds(ScanPolicy, trigger=st.sampled_from(ScanTrigger), action=st.sampled_from(ScanAction))
SPEC: dict[str, st.SearchStrategy[Any]] = {
    "ephemeral": st.booleans(),
    "size": uint64,
    "format": st.sampled_from(FSType),
    "block_size": uint64,
    "cos": st.sampled_from(CosType),
    "io_profile": st.sampled_from(IoProfile),
    "snapshot_interval": uint64,
    "snapshot_schedule": texts,
    "shared": st.booleans(),
    "encrypted": st.booleans(),
    "sticky": st.booleans(),
    "group": texts,
    "compressed": st.booleans(),
    "dedupe": st.booleans(),
    "io_strategy": st.none() | strategies[IoStrategy],
    "io_throttle": st.none() | strategies[IoThrottle],
    "readahead": st.booleans(),
    "mount_options": maps,
    "scan_policy": strategies[ScanPolicy],
    "checksummed": st.booleans(),
}
strategies[VolumeSpec] = st.builds(VolumeSpec, **SPEC)
strategies[SpecUpdate] = _maybe_unset(SPEC).map(lambda fields: SpecUpdate(**fields))
strategies[LocatorUpdate] = _maybe_unset(
    {"name": names, "volume_labels": maps, "ownership": texts, "group": texts}
).map(lambda fields: LocatorUpdate(**fields))
strategies[Usage] = st.builds(Usage, exclusive=uint64, shared=uint64)
strategies[VolumeConsumer] = st.builds(VolumeConsumer, name=texts, type=texts, node_id=texts, count=uint64)
strategies[Volume] = st.builds(
    Volume,
    id=names,
    locator=st.builds(VolumeLocator, name=names, volume_labels=maps),
    ctime=times,
    source=strategies[Source],
    readonly=st.booleans(),
    spec=strategies[VolumeSpec],
    usage=strategies[Usage],
    format=st.sampled_from(FSType),
    status=st.sampled_from(VolumeStatus),
    state=st.sampled_from(VolumeState),
    attached_on=texts,
    attached_state=st.sampled_from(AttachState),
    device_path=texts,
    attach_path=st.lists(texts, max_size=3).map(tuple),
    attach_info=maps,
    runtime_state=st.lists(maps, max_size=2).map(tuple),
    error=texts,
    attach_time=st.none() | times,
    detach_time=st.none() | times,
    mount_options=maps,
    last_scan=st.none() | times,
    last_scan_status=st.sampled_from(HealthStatus),
    volume_consumers=st.lists(strategies[VolumeConsumer], max_size=2).map(tuple),
)
strategies[Stats] = st.builds(Stats, **dict.fromkeys(Stats.__struct_fields__, uint64))
strategies[ActiveRequest] = st.builds(ActiveRequest, id=uint64, description=texts)
strategies[ActiveRequests] = st.lists(strategies[ActiveRequest], max_size=3).map(
    lambda requests: ActiveRequests(request_count=len(requests) + 1, requests=tuple(requests))
)


def a_volume(**fields: Any) -> Volume:
    """A valid volume with some fields of its own."""
    needed: dict[str, Any] = {"id": "v1", "locator": VolumeLocator(name="web"), "ctime": NOON}
    return Volume(**(needed | fields))


def test_every_record_has_its_round_trip_tested() -> None:
    records = {kind for kind in Record.__subclasses__() if kind.__module__.startswith("fusevol.api.")}
    assert set(strategies) == records


def test_the_round_trip_of_a_record_tries_all_its_fields() -> None:
    assert set(SPEC) | {"passphrase"} == set(VolumeSpec.__struct_fields__)
    assert set(SPEC) == set(SpecUpdate.__struct_fields__)


@pytest.mark.parametrize("kind", strategies, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_record_comes_back_from_json_as_it_went(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(strategies[kind])
    assert from_json(to_json(record), kind) == record


def test_a_record_cannot_be_changed_in_place() -> None:
    spec = VolumeSpec()
    with pytest.raises(AttributeError):
        spec.size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (VolumeSpec, '{"size": 1, "ha_level": 3}', "VolumeSpec: object contains unknown field `ha_level`"),
        (VolumeSpec, '{"size": "1"}', "VolumeSpec.size: expected `int`, got `str`"),
        (VolumeSpec, '{"size": true}', "VolumeSpec.size: expected `int`, got `bool`"),
        (VolumeSpec, '{"size": 1.5}', "VolumeSpec.size: expected `int`, got `float`"),
        (VolumeSpec, '{"size": -1}', "VolumeSpec.size: -1 is not between"),
        (VolumeSpec, f'{{"size": {MAX + 1}}}', "VolumeSpec.size: .* is not between"),
        (VolumeSpec, '{"size": null}', "VolumeSpec.size: expected `int`, got `null`"),
        (VolumeSpec, '{"format": "EXT4"}', "VolumeSpec.format: invalid enum value 'EXT4'"),
        (VolumeSpec, '{"encrypted": true, "passphrase": 5}', "VolumeSpec.passphrase: expected `str`"),
        (VolumeSpec, '{"io_throttle": {"read_iops": "x"}}', "VolumeSpec.io_throttle.read_iops: expected"),
        (VolumeSpec, '{"io_throttle": {"iops": 1}}', "VolumeSpec.io_throttle: object contains unknown field"),
        (VolumeSpec, '{"mount_options": {"a": 1}}', "VolumeSpec.mount_options"),
        (VolumeSpec, "[]", "VolumeSpec: expected `object`, got `array`"),
        (VolumeSpec, "", "VolumeSpec: input data was truncated"),
        (VolumeSpec, "{", "VolumeSpec: input data was truncated"),
        (VolumeSpec, "{} {}", "VolumeSpec: JSON is malformed"),
        (Volume, "{}", "Volume: object missing required field `id`"),
        (Volume, '{"id": "a", "locator": {"name": "-x"}, "ctime": "2024-05-01T12:00:00Z"}', "locator.name"),
        (Volume, '{"id": "a", "locator": {"name": "x"}, "ctime": "2024-05-01T12:00:00"}', "Volume.ctime"),
        (Volume, '{"id": "a", "locator": {"name": "x"}, "ctime": "yesterday"}', "Volume.ctime"),
        (SpecUpdate, '{"passphrase": "x"}', "SpecUpdate: object contains unknown field `passphrase`"),
        (SpecUpdate, '{"size": -1}', "SpecUpdate.size"),
        (LocatorUpdate, '{"name": ""}', "LocatorUpdate.name"),
        (ActiveRequests, '{"requests": [{"id": 1}]}', "ActiveRequests.request_count"),
        (list[VolumeSpec], '[{"size": "1"}]', r"list\[0\]|list\[...\].size: expected `int`"),
    ],
)
def test_malformed_json_is_refused_in_one_line_that_names_the_field(kind: type[Any], text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        from_json(text, kind)
    assert len(str(caught.value).splitlines()) == 1


def test_a_field_name_with_control_characters_does_not_reach_the_message() -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_json(json.dumps({"a\n\x1b[31m\u2028" + "b" * 10_000: 1}), VolumeSpec)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=40))
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        from_json(data, Volume)


@pytest.mark.parametrize("data", [b'{"group": "\xff"}', b'{"group": "\\ud800"}', '{"group": "\ud800"}'])
def test_text_that_is_not_unicode_is_refused_on_the_way_in(data: bytes | str) -> None:
    with pytest.raises(InvalidArgument):
        from_json(data, VolumeSpec)


def test_text_that_is_not_unicode_is_refused_on_the_way_out() -> None:
    with pytest.raises(InvalidArgument, match="Volume: text is not valid Unicode"):
        to_json(a_volume(attach_path=("/mnt/\udcff",)))


def test_something_that_is_no_record_is_not_written() -> None:
    with pytest.raises(TypeError):
        to_json(object())


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field.name)
        for kind in strategies
        for field in msgspec.structs.fields(kind)
        if field.type is int or field.type == int | msgspec.UnsetType
    ],
)
@pytest.mark.parametrize("value", [-1, MAX + 1])
def test_a_number_that_does_not_fit_is_refused(kind: type[Record], field: str, value: int) -> None:
    needed = {"name": "x"} if kind is VolumeConsumer else {}
    with pytest.raises(InvalidArgument, match=rf"^{kind.__name__}\.{field}: "):
        kind(**(needed | {field: value}))


def test_a_copy_with_changes_is_checked_too() -> None:
    with pytest.raises(InvalidArgument):
        msgspec.structs.replace(VolumeSpec(), size=-1)


def test_a_number_of_64_bits_fits() -> None:
    assert from_json(to_json(VolumeSpec(size=MAX)), VolumeSpec).size == MAX


@pytest.mark.parametrize("name", ["", "a/b", "@", ".x", "x" * 129, "web\n"])
def test_a_volume_cannot_have_a_bad_name_or_id(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"Volume\.locator\.name: "):
        a_volume(locator=VolumeLocator(name=name))
    with pytest.raises(InvalidArgument, match=r"Volume\.id"):
        a_volume(id=name)


def test_a_locator_alone_may_have_any_text_as_name_since_it_may_be_a_regular_expression() -> None:
    assert VolumeLocator(name="web-[0-9]+|db").name


def test_a_passphrase_is_never_written() -> None:
    spec = VolumeSpec(encrypted=True, passphrase=Secret("hunter2"))
    volume = a_volume(spec=spec)
    for text in (to_json(spec).decode(), to_json([volume]).decode(), repr(volume), str(spec.passphrase)):
        assert "hunter2" not in text
    assert json.loads(to_json(spec))["passphrase"] is None
    with pytest.raises(TypeError):
        msgspec.json.encode(volume)
    with pytest.raises(TypeError):
        pickle.dumps(volume)
    with pytest.raises(TypeError):
        copy.deepcopy(spec)


def test_a_passphrase_can_be_read_and_revealed() -> None:
    spec = from_json('{"encrypted": true, "passphrase": "hunter2"}', VolumeSpec)
    assert spec.passphrase == Secret("hunter2")
    assert spec.passphrase is not None
    assert spec.passphrase.reveal() == "hunter2"
    assert {spec.passphrase} == {Secret("hunter2")}
    assert spec.passphrase != Secret("other")


def test_a_passphrase_without_encryption_is_refused_rather_than_ignored() -> None:
    with pytest.raises(InvalidArgument, match="not encrypted"):
        VolumeSpec(passphrase=Secret("x"))


def test_times_are_rfc_3339_in_utc() -> None:
    volume = a_volume(ctime=NOON.astimezone(timezone(timedelta(hours=2))))
    assert json.loads(to_json(volume))["ctime"] == "2024-05-01T12:00:00Z"
    assert volume.ctime.tzinfo is UTC


def test_a_time_without_a_zone_or_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"Volume\.ctime: the time has no time zone"):
        a_volume(ctime=datetime(2024, 5, 1, 12))
    with pytest.raises(InvalidArgument, match=r"Volume\.last_scan: the time is out of range"):
        a_volume(last_scan=datetime.min.replace(tzinfo=timezone(timedelta(hours=2))))


def test_the_text_of_an_enum_member_is_its_name_in_lower_case() -> None:
    for kind in (
        AttachState, CosType, DriverType, FSType, HealthStatus, IoProfile, ScanAction, ScanTrigger,
        VolumeState, VolumeStatus,
    ):  # fmt: skip
        for member in kind:
            assert member.value == str(member) == member.name.lower()


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        (VolumeStatus, "none not_present up down degraded"),
        (
            VolumeState,
            "none pending available attached detached detaching error deleted try_detaching restore",
        ),
        (AttachState, "external internal internal_switch"),
        (FSType, "none btrfs ext4 fuse nfs vfs xfs zfs"),
        (DriverType, "none file block object clustered graph"),
        (CosType, "none low medium high"),
        (
            IoProfile,
            "sequential random db db_remote cms sync_shared auto none journal auto_journal",
        ),
    ],
)
def test_the_enums_have_the_members_of_openstorage(kind: Any, members: str) -> None:
    assert [str(member) for member in kind] == members.split()


@pytest.mark.parametrize(
    ("parent", "readonly", "is_snapshot", "is_clone"),
    [
        ("", False, False, False),
        ("", True, False, False),
        ("p", True, True, False),
        ("p", False, False, True),
    ],
)
def test_a_volume_with_a_parent_is_a_snapshot_if_readonly_and_else_a_clone(
    parent: str, readonly: bool, is_snapshot: bool, is_clone: bool
) -> None:
    volume = a_volume(source=Source(parent=parent), readonly=readonly)
    assert (volume.is_snapshot, volume.is_clone) == (is_snapshot, is_clone)


@pytest.mark.parametrize("node", ["", "n1"])
@pytest.mark.parametrize("state", VolumeState)
@pytest.mark.parametrize("attached_state", AttachState)
def test_a_volume_is_attached_if_a_node_has_it_in_that_state_and_not_for_the_driver_itself(
    node: str, state: VolumeState, attached_state: AttachState
) -> None:
    volume = a_volume(attached_on=node, state=state, attached_state=attached_state)
    expected = node == "n1" and state == "attached" and attached_state != "internal"
    assert volume.is_attached == expected


def test_usage_in_total_is_what_is_exclusive_and_what_is_shared() -> None:
    assert Usage(exclusive=3, shared=4).total == 7


def test_there_may_be_more_requests_than_are_listed_but_not_fewer() -> None:
    one = ActiveRequest(id=1, description="read")
    assert ActiveRequests(request_count=9, requests=(one,)).request_count == 9
    with pytest.raises(InvalidArgument):
        ActiveRequests(requests=(one,))


def test_throughput_is_bytes_per_second_and_latency_microseconds_per_operation() -> None:
    stats = Stats(reads=10, read_ms=20, read_bytes=4096, writes=30, write_ms=300, write_bytes=8192, interval_ms=500)
    assert (stats.read_throughput, stats.write_throughput, stats.throughput) == (8192, 16384, 24576)
    assert (stats.read_latency, stats.write_latency, stats.latency) == (2000, 10000, 8000)
    assert stats.iops == 80


def test_rates_of_nothing_are_zero() -> None:
    idle = Stats()
    rates = (
        idle.read_throughput, idle.write_throughput, idle.throughput, idle.iops,
        idle.read_latency, idle.write_latency, idle.latency,
    )  # fmt: skip
    assert set(rates) == {0}


LEVELS = ("io_progress", "bytes_used", "unique_blocks")
COUNTERS = tuple(field for field in Stats.__struct_fields__ if field not in LEVELS)


@given(strategies[Stats], strategies[Stats])
def test_stats_since_earlier_ones_are_the_difference_of_counters_with_the_levels_of_now(
    earlier: Stats, gained: Stats
) -> None:
    sums = {f: min(MAX, getattr(earlier, f) + getattr(gained, f)) for f in COUNTERS}
    now = msgspec.structs.replace(gained, **sums)
    since = now.since(earlier)
    assert all(getattr(since, f) == sums[f] - getattr(earlier, f) for f in COUNTERS)
    assert all(getattr(since, f) == getattr(gained, f) for f in LEVELS)


@pytest.mark.parametrize("field", COUNTERS)
def test_stats_that_started_anew_count_in_full(field: str) -> None:
    before = msgspec.structs.replace(Stats(reads=1, writes=1), **{field: 100})
    now = Stats(reads=1, writes=1)
    assert now.since(before) == now


def test_a_level_that_fell_is_no_sign_of_a_new_start() -> None:
    assert Stats(reads=5, bytes_used=1).since(Stats(reads=2, bytes_used=9)) == Stats(reads=3, bytes_used=1)


def test_an_update_changes_only_what_it_sets() -> None:
    spec = VolumeSpec(size=5, group="g", io_throttle=IoThrottle(read_iops=1))
    assert SpecUpdate().apply_to(spec) == spec
    changed = SpecUpdate(size=9, io_throttle=None).apply_to(spec)
    assert changed == VolumeSpec(size=9, group="g")


def test_an_update_from_json_tells_null_from_not_there() -> None:
    spec = VolumeSpec(io_throttle=IoThrottle(read_iops=1))
    assert from_json("{}", SpecUpdate).apply_to(spec) == spec
    assert from_json('{"io_throttle": null}', SpecUpdate).apply_to(spec) == VolumeSpec()
    assert to_json(SpecUpdate(size=1)) == b'{"size":1}'


def test_labels_are_merged_and_an_empty_value_removes_one() -> None:
    locator = VolumeLocator(name="web", volume_labels={"a": "1", "b": "2", "flag": ""}, group="g")
    update = LocatorUpdate(name="www", volume_labels={"b": "", "c": "3", "none": ""})
    assert update.apply_to(locator) == VolumeLocator(
        name="www", volume_labels={"a": "1", "flag": "", "c": "3"}, group="g"
    )
    assert LocatorUpdate().apply_to(locator) == locator


def test_an_update_leaves_the_passphrase_alone() -> None:
    spec = VolumeSpec(encrypted=True, passphrase=Secret("x"))
    assert SpecUpdate(size=1).apply_to(spec).passphrase == Secret("x")


def test_every_public_name_of_the_package_exists_once() -> None:
    assert len(set(api.__all__)) == len(api.__all__)
    for name in api.__all__:
        assert hasattr(api, name)

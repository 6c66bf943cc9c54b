"""Tags, which Juju calls volumes, filesystems, storage, machines and units by."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.errors import InvalidArgument
from fusevol.storage import FilesystemTag, MachineTag, StorageTag, Tag, UnitTag, VolumeTag, parse_tag

KINDS: dict[type[Tag], str] = {
    VolumeTag: "volume",
    FilesystemTag: "filesystem",
    StorageTag: "storage",
    MachineTag: "machine",
    UnitTag: "unit",
}

numbers = st.integers(0, 2**70).map(str)
names = st.from_regex(
    r"[a-z][a-z0-9]{0,3}(-[a-z0-9]{0,2}[a-z][a-z0-9]{0,2}){0,3}",
    fullmatch=True,
    alphabet=st.characters(codec="ascii"),
)
containers = st.builds("/{}/{}".format, st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=5), numbers)
machines = st.builds("{}{}".format, numbers, st.lists(containers, max_size=3).map("".join))
units = st.builds("{}/{}".format, names, numbers)
placed = numbers | st.builds("{}/{}".format, machines | units, numbers)
ids: dict[type[Tag], st.SearchStrategy[str]] = {
    VolumeTag: placed,
    FilesystemTag: placed,
    StorageTag: units,
    MachineTag: machines,
    UnitTag: units,
}

VALID: list[tuple[type[Tag], str, str]] = [
    (VolumeTag, "0", "volume-0"),
    (VolumeTag, "10", "volume-10"),
    (VolumeTag, "0/0", "volume-0-0"),
    (VolumeTag, "0/1", "volume-0-1"),
    (VolumeTag, "0/lxc/0/0", "volume-0-lxc-0-0"),
    (VolumeTag, "6/lxc/42/kvm/0/7", "volume-6-lxc-42-kvm-0-7"),
    (VolumeTag, "some-unit/0/0", "volume-some-unit-0-0"),
    (VolumeTag, "some-unit/0/88", "volume-some-unit-0-88"),
    (VolumeTag, "mysql/0/1", "volume-mysql-0-1"),
    (FilesystemTag, "0", "filesystem-0"),
    (FilesystemTag, "0/0", "filesystem-0-0"),
    (FilesystemTag, "0/lxc/0/0", "filesystem-0-lxc-0-0"),
    (FilesystemTag, "some-unit/0/0", "filesystem-some-unit-0-0"),
    (StorageTag, "data/0", "storage-data-0"),
    (StorageTag, "shared-fs/0", "storage-shared-fs-0"),
    (StorageTag, "a-1b-c2/10", "storage-a-1b-c2-10"),
    (MachineTag, "0", "machine-0"),
    (MachineTag, "42", "machine-42"),
    (MachineTag, "0/lxc/1", "machine-0-lxc-1"),
    (MachineTag, "6/lxc/42/kvm/0", "machine-6-lxc-42-kvm-0"),
    (UnitTag, "mysql/0", "unit-mysql-0"),
    (UnitTag, "some-unit/12", "unit-some-unit-12"),
]

PLACED_INVALID = [
    "-1",
    "",
    "one",
    "#",
    "0/0/0",
    "00",
    "01",
    "0/",
    "/0",
    "0/00",
    "0/lxc/0",
    "mysql/0",
    "some-unit/0/0/0",
]
INVALID: list[tuple[type[Tag], str]] = [
    *((kind, text) for kind in (VolumeTag, FilesystemTag) for text in PLACED_INVALID),
    *((kind, text) for kind in (VolumeTag, FilesystemTag) for text in ["0\n", "0/0\n", "\u0660", "0/\u00e9/0/0", " 0"]),
    *((StorageTag, text) for text in ["store-1", "store/-1", "store", "", "store/", "/0", "store/01", "Store/0"]),
    *((StorageTag, text) for text in ["store-1/0", "1store/0", "store-/0", "store/0/0", "sto_re/0", "store/0\n"]),
    *((MachineTag, text) for text in ["042", "1/foo", "0/lxc/00", "", "-1", "0/", "0/lxc/", "0/LXC/0", "one"]),
    *((MachineTag, text) for text in ["0/0", "0/lxc0/0", "0/lxc/0/kvm", "0\n", "\u0661", "0//0"]),
    *(
        (UnitTag, text)
        for text in ["mysql", "mysql/", "mysql/-1", "mysql/01", "0/0", "", "/0", "mysql/0/0", "mysql/0\n"]
    ),
]


@pytest.mark.parametrize(("kind", "id_", "text"), VALID)
def test_an_id_makes_a_tag(kind: type[Tag], id_: str, text: str) -> None:
    assert kind.is_valid(id_)
    assert kind(id_).id == id_
    assert str(kind(id_)) == text


@pytest.mark.parametrize(("kind", "id_", "text"), VALID)
def test_a_tag_is_read(kind: type[Tag], id_: str, text: str) -> None:
    assert kind.parse(text) == kind(id_)
    assert parse_tag(text) == kind(id_)


@pytest.mark.parametrize(("kind", "id_"), INVALID)
def test_an_id_that_is_not_one_of_the_kind_is_refused(kind: type[Tag], id_: str) -> None:
    assert not kind.is_valid(id_)
    with pytest.raises(InvalidArgument) as caught:
        kind(id_)
    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize("id_", ["x", "one", "-1", "0/0/0", "#"])
def test_an_id_that_is_refused_is_named(id_: str) -> None:
    with pytest.raises(InvalidArgument, match=rf'^"{re.escape(id_)}" is not a valid volume ID'):
        VolumeTag(id_)


@pytest.mark.parametrize("text", ["one", "", "volume", "pool-0", "0"])
def test_a_text_that_is_no_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=rf'^"{text}" is not a valid tag'):
        parse_tag(text)


@pytest.mark.parametrize("text", ["machine-0", "filesystem-0", "storage-data-0", "unit-mysql-0"])
def test_a_tag_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=rf'^"{text}" is not a valid volume tag'):
        VolumeTag.parse(text)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_tag_is_read_as_one_of_another_kind(kind: type[Tag]) -> None:
    for other, _, text in VALID:
        if other is not kind:
            with pytest.raises(InvalidArgument):
                kind.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "volume-",
        "volume--1",
        "volume-one",
        "volume-0-0-0",
        "volume-00",
        "volume-0\n",
        "Volume-0",
        " volume-0",
        "filesystem-0-0-0",
        "storage-store",
        "storage-shared/fs-0",
        "machine-042",
        "machine-1-foo",
        "machine-0-lxc-00",
        "unit-mysql",
    ],
)
def test_a_tag_of_a_wrong_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_tag(text)
    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_tag_begins_with_its_kind(kind: type[Tag]) -> None:
    assert kind.kind == KINDS[kind]


def test_the_same_id_of_two_kinds_is_two_tags() -> None:
    tags: set[Tag] = {VolumeTag("0"), FilesystemTag("0"), MachineTag("0"), VolumeTag("0")}
    assert len(tags) == 3


def test_a_tag_cannot_be_changed_in_place() -> None:
    tag = VolumeTag("0")
    with pytest.raises(AttributeError):
        tag.id = "1"  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_tag_comes_back_from_text_as_it_went(kind: type[Tag], data: st.DataObject) -> None:
    id_ = data.draw(ids[kind])
    tag = kind(id_)
    assert str(tag).startswith(f"{KINDS[kind]}-")
    assert "/" not in str(tag)
    assert kind.parse(str(tag)) == tag
    assert parse_tag(str(tag)) == tag
    assert tag.id == id_


@given(
    st.text() | st.text("volumeachin-/0123\n") | st.builds("{}-{}".format, st.sampled_from([*KINDS.values()]), placed)
)
def test_any_text_is_a_tag_or_refused_in_one_line(text: str) -> None:
    message = "read"
    try:
        tag = parse_tag(text)
        assert parse_tag(str(tag)) == tag
    except InvalidArgument as error:
        message = str(error)
    assert message.splitlines() == [message]


@pytest.mark.parametrize("text", ["volume-0/0", "storage-data/0", "machine-0/lxc/0", "unit-mysql/0"])
def test_an_id_is_no_part_of_a_tag(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a valid tag"):
        parse_tag(text)

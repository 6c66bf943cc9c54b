"""Names of volumes and snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.api import VolumeRef, check_name, parse_volume_ref
from fusevol.errors import InvalidArgument

NAME = r"\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z"


@given(st.from_regex(NAME))
def test_a_name_of_letters_digits_and_a_few_signs_is_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".hidden", "-rf", "_x", "a/b", "a b", "a@b", "a\n", "\0", "naïve", "٣", "x" * 129, "..", "a:b"],
)
def test_any_other_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name(name)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.hint


def test_a_name_may_have_128_characters() -> None:
    assert check_name("x" * 128)


def test_the_error_says_what_the_name_was_for() -> None:
    with pytest.raises(InvalidArgument, match=r"^snapshot 'a b' is not a valid name$"):
        parse_volume_ref("web@a b")


def test_a_very_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name("x" * 100_000)
    assert len(str(caught.value)) < 200


@given(st.from_regex(NAME), st.none() | st.from_regex(NAME))
def test_a_reference_and_its_text_are_two_forms_of_one_thing(volume: str, snapshot: str | None) -> None:
    ref = VolumeRef(volume, snapshot)
    assert parse_volume_ref(str(ref)) == ref


@pytest.mark.parametrize("text", ["", "@", "web@", "@monday", "web@a@b", "web @a", "web/a"])
def test_half_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_volume_ref(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ref = parse_volume_ref(text)
    except InvalidArgument:
        return
    assert str(ref) == text

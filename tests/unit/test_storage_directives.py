"""Storage directives, alone and by the names of storage: the tables of Juju's rules, and what holds for any text."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.errors import InvalidArgument
from fusevol.storage import Directive, parse_directive, parse_directives_map, to_string

MAX = 2**64 - 1
MANY = 5000  # digits; more than Python turns into an integer without being asked
UNITS = "MGTPEZY"
NOTHING = "storage directives require at least one field to be specified"

uint64 = st.integers(0, MAX)
pools = st.from_regex(r"[a-zA-Z]+[-?a-zA-Z0-9]*", fullmatch=True, alphabet=st.characters(codec="ascii"))
texts = st.text() | st.text("pP01.9-?,MGYiBK =\n\r\u2028\u0661\0") | st.text("p01,M-.")


@pytest.mark.parametrize(
    ("text", "pool", "count", "size"),
    [
        ("pool,1M", "pool", 1, 1),
        ("pool,", "pool", 1, 0),
        ("pool", "pool", 1, 0),
        ("1M", "", 1, 1),
        ("p,1M,", "p", 1, 1),
        (",,p,,1M,,", "p", 1, 1),
        ("p,1G", "p", 1, 1024),
        ("p,1,0.5T", "p", 1, 524288),
        ("p,0.125P,3", "p", 3, 134217728),
        ("3,p,0.125P", "p", 3, 134217728),
        ("M", "M", 1, 0),
        ("M5", "M5", 1, 0),
        ("5,M,5M", "M", 5, 5),
        ("p?00l", "p?00l", 1, 0),
        ("p-", "p-", 1, 0),
        ("0.1G", "", 1, 103),
        ("1.5M", "", 1, 2),
        ("0.0001M", "", 1, 1),
        ("1MB", "", 1, 1),
        ("1GB", "", 1, 1024),
        ("1GiB", "", 1, 1024),
        ("1P", "", 1, 2**30),
        ("1E", "", 1, 2**40),
        ("1Z", "", 1, 2**50),
        ("1Y", "", 1, 2**60),
        ("15.5YiB", "", 1, 31 * 2**59),
        (f"{MAX}M", "", 1, MAX),
        (f"{MAX - 1}.5M", "", 1, MAX),
        ("9007199254740993M", "", 1, 2**53 + 1),
        ("007", "", 7, 0),
        ("007M", "", 1, 7),
        (f"{MAX}", "", MAX, 0),
        ("0" * MANY + "7", "", 7, 0),
        ("0" * MANY + "7M", "", 1, 7),
        (f"1.{'0' * MANY}1M", "", 1, 2),
        ("p,0M", "p", 1, 0),
        ("0M,5M", "", 1, 5),
        ("0M,0.0G,5M", "", 1, 5),
        ("2,0M", "", 2, 0),
    ],
)
def test_a_directive_is_read(text: str, pool: str, count: int, size: int) -> None:
    assert parse_directive(text) == Directive(pool=pool, count=count, size=size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NOTHING),
        (",", NOTHING),
        (",,,", NOTHING),
        ("0M", NOTHING),
        ("0.0Y", NOTHING),
        ("p,0,100M", 'cannot parse count: count must be greater than zero, got "0"'),
        ("p,00,100M", 'cannot parse count: count must be greater than zero, got "00"'),
        ("p,-1,100M", 'cannot parse count: count must be greater than zero, got "-1"'),
        ("-0", 'cannot parse count: count must be greater than zero, got "-0"'),
        ("-99999999999999999999", 'cannot parse count: count must be greater than zero, got "-99999999999999999999"'),
        ("p,-100M", 'cannot parse size: expected a non-negative number, got "-100M"'),
        ("-0M", 'cannot parse size: expected a non-negative number, got "-0M"'),
        ("-0.5GiB", 'cannot parse size: expected a non-negative number, got "-0.5GiB"'),
        ("a,b", 'pool name is already set to "a", new value "b" not valid'),
        ("a,a", 'pool name is already set to "a", new value "a" not valid'),
        ("pool1,anyoldjunk", 'pool name is already set to "pool1", new value "anyoldjunk" not valid'),
        ("pool1,pool2,pool3", 'pool name is already set to "pool1", new value "pool2" not valid'),
        ("pool1,10,20", "storage instance count is already set to 10, new value 20 not valid"),
        ("10,pool1,10", "storage instance count is already set to 10, new value 10 not valid"),
        ("pool1,10M,20M", "storage size is already set to 10, new value 20 not valid"),
        ("10M,pool1,1G", "storage size is already set to 10, new value 1024 not valid"),
        ("10M,0M", "storage size is already set to 10, new value 0 not valid"),
        ("p,100M database-b", 'unrecognized storage directive "100M database-b" not valid'),
        ("p,$1234", 'unrecognized storage directive "$1234" not valid'),
        ("99999999999999999999", 'unrecognized storage directive "99999999999999999999" not valid'),
        (f"{MAX + 1}", f'unrecognized storage directive "{MAX + 1}" not valid'),
        *(
            (text, f'unrecognized storage directive "{text}" not valid')
            for text in ["1Gi", "1K", "1m", "1g", "1b", "1.5", ".5G", "5.G", "+1", "+1M", " p", "p ", " ", "1 M", "1M "]
        ),
        *(
            (text, f'unrecognized storage directive "{text}" not valid')
            for text in ["a.b", "pool_1", "1Mb", "1MIB", "1MBB", "1e3M", "0x1", "1_0", "--1", "-", "?p", "-p", "1p"]
        ),
        ("p\n", "unrecognized storage directive"),
        ("1\n", "unrecognized storage directive"),
        ("1M\n", "unrecognized storage directive"),
        ("\u0661", "unrecognized storage directive"),
        ("\uff11M", "unrecognized storage directive"),
        ("p\u00e9", "unrecognized storage directive"),
    ],
)
def test_a_directive_that_is_wrong_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{re.escape(message)}") as caught:
        parse_directive(text)
    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize("text", ["16Y", f"{MAX + 1}M", f"{MAX}.1M", "9" * MANY + "M"])
def test_a_size_of_more_than_64_bits_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_directive(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("9" * MANY, "^unrecognized storage directive "), ("0" * MANY, "^cannot parse count: count must be greater than")],
    ids=["nines", "zeros"],
)
def test_a_count_of_very_many_digits_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_directive(text)


@given(texts)
def test_any_text_is_a_directive_or_refused_in_one_line(text: str) -> None:
    message = "read"
    try:
        assert parse_directive(text).count >= 1
    except InvalidArgument as error:
        message = str(error)
    assert message.splitlines() == [message]


@given(pool=pools, count=st.integers(1, MAX), size=st.integers(1, MAX), data=st.data())
def test_fields_in_any_order_mean_the_same(pool: str, count: int, size: int, data: st.DataObject) -> None:
    fields = data.draw(st.permutations(["", pool, f"{count}", f"{size}M"]))
    assert parse_directive(",".join(fields)) == Directive(pool=pool, count=count, size=size)


@given(
    whole=st.from_regex(r"[0-9]{1,20}", fullmatch=True, alphabet=st.characters(codec="ascii")),
    part=st.from_regex(r"(\.[0-9]{1,30})?", fullmatch=True, alphabet=st.characters(codec="ascii")),
    unit=st.sampled_from(UNITS),
    suffix=st.sampled_from(["", "B", "iB"]),
)
def test_a_size_is_the_least_that_holds_what_was_asked(whole: str, part: str, unit: str, suffix: str) -> None:
    asked = Fraction(whole + part) * 1024 ** UNITS.index(unit)
    text = f"p,{whole}{part}{unit}{suffix}"
    if math.ceil(asked) > MAX:
        with pytest.raises(InvalidArgument):
            parse_directive(text)
    else:
        size = parse_directive(text).size
        assert size - 1 < asked <= size


@pytest.mark.parametrize(
    ("directive", "text"),
    [
        (Directive(pool="loop", count=0, size=0), "loop"),
        (Directive(pool="loop", count=1, size=0), "loop,1"),
        (Directive(pool="loop", count=0, size=1024), "loop,1024M"),
        (Directive(pool="loop", count=1, size=1024), "loop,1,1024M"),
        (Directive(pool="", count=0, size=1024), "1024M"),
        (Directive(pool="", count=1, size=0), "1"),
        (Directive(pool="", count=1, size=1024), "1,1024M"),
    ],
)
def test_a_directive_is_written(directive: Directive, text: str) -> None:
    assert to_string(directive) == text


def test_a_directive_that_says_nothing_is_not_written() -> None:
    with pytest.raises(InvalidArgument, match=r"^must provide one of pool or size or count$"):
        to_string(Directive())


@given(
    st.builds(Directive, pool=st.just("") | pools, count=uint64, size=uint64).filter(lambda made: made != Directive())
)
def test_a_directive_that_was_written_is_read_as_it_was(directive: Directive) -> None:
    read = parse_directive(to_string(directive))
    assert read == Directive(pool=directive.pool, count=directive.count or 1, size=directive.size)


@pytest.mark.parametrize(
    ("args", "must_have", "directives"),
    [
        ([], False, {}),
        ([], True, {}),
        (["data=p,1M,"], True, {"data": Directive(pool="p", count=1, size=1)}),
        (["data=p,1M,"], False, {"data": Directive(pool="p", count=1, size=1)}),
        (["data"], False, {"data": Directive(count=1)}),
        (["data=3", "cache"], False, {"data": Directive(count=3), "cache": Directive(count=1)}),
        (["b=1G", "a=p"], True, {"a": Directive(pool="p", count=1), "b": Directive(count=1, size=1024)}),
    ],
)
def test_directives_are_read_by_the_names_of_storage(
    args: list[str], must_have: bool, directives: dict[str, Directive]
) -> None:
    assert parse_directives_map(args, must_have_directives=must_have) == directives


@pytest.mark.parametrize(
    ("args", "must_have", "message"),
    [
        (["data"], True, 'expected "name=directive" where "directive" must be specified, got "data"'),
        (["cache=1", "data"], True, 'expected "name=directive" where "directive" must be specified, got "data"'),
        (["data=p,=1M,"], False, 'expected "name=directive" or "name", got "data=p,=1M,"'),
        (["a=b=c=d"], False, 'expected "name=directive" or "name", got "a=b=c=d"'),
        (["data=="], False, 'expected "name=directive" or "name", got "data=="'),
        (["=1"], False, 'expected "name=directive" or "name", got "=1"'),
        (["="], False, 'expected "name=directive" or "name", got "="'),
        ([""], False, 'expected "name=directive" or "name", got ""'),
        (["data", "data"], False, 'storage "data" specified more than once'),
        (["data=1", "cache", "data=p"], False, 'storage "data" specified more than once'),
        (
            ["data=-1"],
            False,
            'cannot parse directive for storage "data": cannot parse count: count must be greater than zero, got "-1"',
        ),
        (["data="], False, f'cannot parse directive for storage "data": {NOTHING}'),
        (["data="], True, f'cannot parse directive for storage "data": {NOTHING}'),
        (
            ["cache=1", "data=a,b"],
            True,
            'cannot parse directive for storage "data": pool name is already set to "a", new value "b" not valid',
        ),
        (
            ["data=$1"],
            False,
            'cannot parse directive for storage "data": unrecognized storage directive "$1" not valid',
        ),
    ],
)
def test_directives_by_name_that_are_wrong_are_refused(args: list[str], must_have: bool, message: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{re.escape(message)}$"):
        parse_directives_map(args, must_have_directives=must_have)


def test_a_name_alone_is_enough_unless_said_otherwise() -> None:
    assert parse_directives_map(["data"]) == {"data": Directive(count=1)}


@given(st.lists(texts, max_size=3), st.booleans())
def test_any_texts_are_directives_by_name_or_refused_in_one_line(args: list[str], must_have: bool) -> None:
    message = "read"
    try:
        directives = parse_directives_map(args, must_have_directives=must_have)
        assert list(directives) == [arg.split("=")[0] for arg in args]
    except InvalidArgument as error:
        message = str(error)
    assert message.splitlines() == [message]


@pytest.mark.parametrize("pool", ["1M", "a,b", "p\n", "7"])
def test_a_directive_has_a_pool_that_can_be_written(pool: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^pool name .* not valid$"):
        Directive(pool=pool)

"""The state directory and its configuration."""

from pathlib import Path

import pytest

from fusevol.errors import InvalidArgument
from fusevol.home import Home, default_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def configure(home: Home, text: str) -> Home:
    home.config_path.write_text(text)
    return Home(home.path)


def test_without_configuration_there_is_the_default_pool_of_files(home: Home) -> None:
    assert list(home.config.pools) == ["default"]
    pool = home.pool("default")
    assert (pool.backend, pool.attributes) == ("file", {"path": str(home.path / "volumes")})


def test_pools_are_described_by_backend_and_parameters(home: Home) -> None:
    home = configure(home, 'lock_timeout = 3\n[pools.s3]\nbackend = "object"\nurl = "s3://bucket"\nparallel = 4\n')
    assert home.config.lock_timeout == 3.0
    pool = home.pool("s3")
    assert (pool.backend, pool.attributes) == ("object", {"url": "s3://bucket", "parallel": 4})
    assert "default" in home.config.pools


def test_the_default_pool_can_be_another(home: Home) -> None:
    home = configure(home, '[pools.default]\nbackend = "file"\npath = "/elsewhere"\n')
    assert home.pool("default").attributes == {"path": "/elsewhere"}


def test_drivers_are_described_by_texts(home: Home) -> None:
    home = configure(home, '[drivers.shelf]\nurl = "http://shelf"\nport = 9000\nshared = true\n\n[drivers.other]\n')
    assert home.config.drivers == {"shelf": {"url": "http://shelf", "port": "9000", "shared": "true"}, "other": {}}
    assert home.place_of("drivers", "shelf") == f"{home.config_path}, line 1: drivers.shelf"
    assert home.place_of("drivers", "other") == f"{home.config_path}, line 6: drivers.other"


def test_an_unknown_pool_is_an_error_that_names_those_there_are(home: Home) -> None:
    with pytest.raises(InvalidArgument, match='no pool "fast"; known: default'):
        home.pool("fast")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lock_timeut = 3", "line 1: lock_timeut: there is no such key; known: lock_timeout, pools"),
        ("\n[driver]\n", "line 2: driver: there is no such key"),
        ("lock_timeout = -1", "line 1: lock_timeout: it must be a number"),
        ("lock_timeout = true", "line 1: lock_timeout: it must be a number"),
        ("pools = 3", "line 1: pools: it must be a table"),
        ("[pools]\nfast = 3", "line 2: pools.fast: a pool must be a table"),
        ('[pools.fast]\npath = "/x"', 'line 1: pools.fast: the key "backend" is missing'),
        ("[pools.fast]\nbackend = 3", "line 2: pools.fast.backend: it must be the name"),
        ('[pools.fast]\nbackend = "file"\npath = ["/x"]', "line 3: pools.fast.path: it must be a text"),
        ('[pools."a b"]\nbackend = "file"', "line 1: pools.a b: the name of a pool 'a b' is not a valid name"),
        ("[pools.fast\n", "line 1"),
        ("drivers = 3", "line 1: drivers: it must be a table of drivers"),
        ("[drivers]\nshelf = 3", "line 2: drivers.shelf: a driver must be a table"),
        ("[drivers.shelf]\n\nurl = ['x']", "line 3: drivers.shelf.url: it must be a text"),
        ('[drivers."a b"]', "line 1: drivers.a b: the name of a driver 'a b' is not a valid name"),
        # However it is written.
        ("# [pools.fast]\npools = {fast = {backend = 3}}", "line 2: pools.fast.backend: it must be"),
        ("[pools]\nslow.backend = 'file'\nfast.backend = 3", "line 3: pools.fast.backend: it must be"),
        ('[pools.a]\nbackend = "file"\nnote = """\n[pools.b]\n"""\n[pools.b]', 'line 6: pools.b: the key "backend"'),
        ('[pools.a]\nbackend = "file"\npath = "rel/dir"', "line 3: pools.a.path: it must be an absolute path"),
        ('[pools."a.b"]\nbackend = [\n1,\n]\n', "line 2: pools.a.b.backend: it must be a text"),
    ],
)
def test_a_mistake_in_the_configuration_is_named_with_file_line_and_key(home: Home, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        configure(home, text).config  # noqa: B018
    assert str(caught.value).startswith(str(home.config_path))
    assert message in str(caught.value)


def test_a_configuration_that_is_no_text_is_refused(home: Home) -> None:
    home.config_path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        home.config  # noqa: B018


def test_the_environment_chooses_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSEVOL_HOME", str(tmp_path))
    assert Home().path == tmp_path
    assert Home("/other").path == Path("/other")


def test_root_and_others_keep_state_where_such_things_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEVOL_HOME", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/fusevol")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_home() == Path("/state/fusevol")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_home() == Path("/home/me/.local/state/fusevol")


def test_whoever_uses_it_knows_new_pools_and_those_it_knows_do_not_change(home: Home) -> None:
    assert set(home.config.pools) == {"default"}
    home.config_path.write_text('[pools.fast]\nbackend = "file"\npath = "/fast"\n')
    before = home.config
    assert set(before.pools) == {"default", "fast"}
    for text in ("[pools.fast\n", '[pools.fast]\nbackend = "file"\npath = "/other"\n', ""):
        home.config_path.write_text(text)
        assert home.config == before
    home.config_path.unlink()
    assert home.config == before
    home.config_path.write_text("[pools.fast\n")
    with pytest.raises(InvalidArgument):
        _ = Home(home.path).config


def test_a_change_that_would_be_a_mistake_is_not_made(home: Home) -> None:
    home.config_path.write_text("lock_timeout = 3\n")
    with pytest.raises(InvalidArgument, match=r"config\.toml, as it would be, line 1: lock_timeout: it must be"):
        home.change_config(lambda text: text.replace("3", "-3"))
    assert home.config_path.read_text() == "lock_timeout = 3\n"
    with pytest.raises(InvalidArgument, match=r"config\.toml: "):
        configure(home, "[").change_config(lambda _: "")
    assert home.config_path.read_text() == "["
    assert [path.name for path in home.path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("text", ["lock_timeout = " + "9" * 5000, "x = " + "[" * 5000])
def test_what_python_cannot_read_is_a_mistake_as_well(home: Home, text: str) -> None:
    home.config_path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"config\.toml"):
        _ = home.config

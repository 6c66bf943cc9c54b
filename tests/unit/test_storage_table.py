"""docs/storage.md names the seed's functions, and places and tests that there are; and every name of it is exported."""

import inspect
import re
from pathlib import Path

import pytest

from fusevol import storage
from tests.unit.test_interface_table import found

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
ROW = re.compile(r"^\| `([A-Z]\w+(?:\.\w+)?)` \| `(fusevol\.[\w.]+)` \| (.*) \|$", re.MULTILINE)
ROWS = {seed: (place, re.findall(r"`([^`]+)`", tests)) for seed, place, tests in ROW.findall(PAGE.read_text())}
#: The index of the seed: its functions, and its types.
FUNCTIONS = {"IsValidPoolName", "ParseDirective", "ParseDirectivesMap", "ToString", "NewConfig"}
TYPES = re.findall(
    r"\w+",
    """
AttachFilesystemsResult AttachVolumesResult AttachmentParams Attrs ChainedProviderRegistry Config
CreateFilesystemsResult CreateVolumesResult DescribeVolumesResult DeviceType Directive Filesystem
FilesystemAttachment FilesystemAttachmentInfo FilesystemAttachmentParams FilesystemImporter FilesystemInfo
FilesystemParams FilesystemSource KubernetesFilesystemAttachmentParams KubernetesFilesystemInfo
KubernetesFilesystemParams NotImplementedProviderRegistry Provider ProviderRegistry ProviderType Scope
StaticProviderRegistry StorageAttachmentInfo StorageInstance StorageKind Volume VolumeAttachment
VolumeAttachmentInfo VolumeAttachmentParams VolumeAttachmentPlan VolumeAttachmentPlanInfo VolumeImporter VolumeInfo
VolumeParams VolumeSource
""",
)
#: The interfaces that something here implements.
INTERFACES = (storage.Provider, storage.ProviderRegistry, storage.FilesystemSource)


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_the_seed_is_exported_and_says_where_it_comes_from(name: str) -> None:
    assert name in storage.__all__
    kind = getattr(storage, name)
    if inspect.isclass(kind) and kind is not str:
        assert name in (kind.__doc__ or "") or f"{name} of the seed" in (inspect.getmodule(kind).__doc__ or "")


def test_the_table_has_every_function_and_every_method_that_something_implements() -> None:
    methods = {f"{interface.__name__}.{name}" for interface in INTERFACES for name in interface.__abstractmethods__}
    importer = {"FilesystemImporter.import_filesystem"}
    config = {"Config.name", "Config.provider", "Config.attrs", "Config.value_string"}
    listed = {seed.partition(".")[0] + "." + snake(seed.partition(".")[2]) for seed in ROWS if "." in seed}
    assert listed == methods | importer | config
    assert {seed for seed in ROWS if "." not in seed} == FUNCTIONS


@pytest.mark.parametrize("seed", ROWS)
def test_what_the_table_names_is_there(seed: str) -> None:
    place, tests = ROWS[seed]
    assert snake(seed.rpartition(".")[2]) == place.rpartition(".")[2] or found(place) is storage.Config
    found(place)
    assert tests
    for test in tests:
        path, *names = test.split("::")
        assert inspect.isfunction(found(".".join([path.removesuffix(".py").replace("/", "."), *names])))

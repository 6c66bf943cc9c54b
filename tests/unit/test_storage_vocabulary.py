"""The words of Juju's storage: pool names, configs, enumerations, Kubernetes' attributes, registries and records."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from fusevol import storage
from fusevol.errors import DriverNotFound, InvalidArgument, NotSupported
from fusevol.storage import (
    ChainedProviderRegistry,
    Config,
    FilesystemTag,
    NotImplementedProviderRegistry,
    Provider,
    ProviderRegistry,
    Scope,
    StaticProviderRegistry,
    StorageKind,
    VolumeTag,
    check_kubernetes_attrs,
    is_valid_pool_name,
)

MAX = 2**64 - 1

ATTACHMENT = ["provider", "machine", "instance_id", "read_only"]
FILESYSTEM_ATTACHMENT_INFO = ["path", "read_only"]
VOLUME_INFO = ["volume_id", "hardware_id", "wwn", "size", "persistent"]
VOLUME_ATTACHMENT_INFO = ["device_name", "device_link", "bus_address", "read_only", "plan_info"]
RECORDS = {
    "AttachFilesystemsResult": ["filesystem_attachment", "error"],
    "AttachVolumesResult": ["volume_attachment", "error"],
    "AttachmentParams": ATTACHMENT,
    "CreateFilesystemsResult": ["filesystem", "error"],
    "CreateVolumesResult": ["volume", "volume_attachment", "error"],
    "DescribeVolumesResult": ["volume_info", "error"],
    "Directive": ["pool", "size", "count"],
    "Filesystem": ["tag", "volume", "filesystem_id", "size"],
    "FilesystemAttachment": ["filesystem", "machine", *FILESYSTEM_ATTACHMENT_INFO],
    "FilesystemAttachmentInfo": FILESYSTEM_ATTACHMENT_INFO,
    "FilesystemAttachmentParams": [*ATTACHMENT, "filesystem", "filesystem_id", "path"],
    "FilesystemInfo": ["filesystem_id", "size"],
    "FilesystemParams": ["tag", "volume", "size", "provider", "attributes", "resource_tags", "attachment"],
    "KubernetesFilesystemAttachmentParams": [*ATTACHMENT, "path"],
    "KubernetesFilesystemInfo": ["mount_point", "read_only", "filesystem_id", "pool", "size"],
    "KubernetesFilesystemParams": ["storage_name", "size", "provider", "attributes", "resource_tags", "attachment"],
    "StorageAttachmentInfo": ["kind", "location"],
    "StorageInstance": ["tag", "kind"],
    "Volume": ["tag", *VOLUME_INFO],
    "VolumeAttachment": ["volume", "machine", *VOLUME_ATTACHMENT_INFO],
    "VolumeAttachmentInfo": VOLUME_ATTACHMENT_INFO,
    "VolumeAttachmentParams": [*ATTACHMENT, "volume", "volume_id"],
    "VolumeAttachmentPlan": ["volume", "machine", "device_type", "device_attributes"],
    "VolumeAttachmentPlanInfo": ["device_type", "device_attributes"],
    "VolumeInfo": VOLUME_INFO,
    "VolumeParams": ["tag", "size", "provider", "attributes", "resource_tags", "attachment"],
}
EMBEDDED = {
    "AttachmentParams": [f"{kind}AttachmentParams" for kind in ("Filesystem", "KubernetesFilesystem", "Volume")],
    "FilesystemAttachmentInfo": ["FilesystemAttachment"],
    "FilesystemInfo": ["Filesystem"],
    "VolumeAttachmentInfo": ["VolumeAttachment"],
    "VolumeAttachmentPlanInfo": ["VolumeAttachmentPlan"],
    "VolumeInfo": ["Volume"],
}
# What a record needs besides the number.
NUMBERS: list[tuple[type[msgspec.Struct], str, dict[str, Any]]] = [
    (storage.Directive, "size", {}),
    (storage.Directive, "count", {}),
    (storage.Filesystem, "size", {"filesystem_id": "f", "tag": FilesystemTag("0")}),
    (storage.FilesystemInfo, "size", {"filesystem_id": "f"}),
    (storage.FilesystemParams, "size", {"tag": FilesystemTag("0"), "provider": "file"}),
    (storage.KubernetesFilesystemInfo, "size", {"mount_point": "/srv", "filesystem_id": "f", "pool": "p"}),
    (storage.KubernetesFilesystemParams, "size", {"storage_name": "data", "provider": "file"}),
    (storage.Volume, "size", {"volume_id": "v", "tag": VolumeTag("0")}),
    (storage.VolumeInfo, "size", {"volume_id": "v"}),
    (storage.VolumeParams, "size", {"tag": VolumeTag("0"), "provider": "file"}),
]


class Bare(Provider):
    """A provider that has nothing."""

    scope = Scope.ENVIRON
    dynamic = True
    releasable = False

    def volume_source(self, config: Config) -> storage.VolumeSource:
        raise NotSupported("volumes not supported")

    def filesystem_source(self, config: Config) -> storage.FilesystemSource:
        raise NotSupported("filesystems not supported")

    def supports(self, kind: StorageKind) -> bool:
        return False

    def default_pools(self) -> list[Config]:
        return []

    def validate_config(self, config: Config) -> None: ...

    def validate_for_k8s(self, attrs: Mapping[str, Any]) -> None: ...


class Broken(ProviderRegistry):
    """A registry that does not work."""

    def storage_provider_types(self) -> list[storage.ProviderType]:
        raise InvalidArgument("out of order")

    def storage_provider(self, provider_type: storage.ProviderType) -> Provider:
        raise InvalidArgument("out of order")


@pytest.mark.parametrize("name", ["pool", "p-ool", "p-00l", "p?00l", "p-?00l", "p", "P", "p?0?l", "p-"])
def test_a_pool_can_be_called(name: str) -> None:
    assert is_valid_pool_name(name)


@pytest.mark.parametrize(
    "name",
    ["7ool", "/ool", "-00l", "*00l", "", "?", "po ol", "a.b", "a_b", "a,b", "pool\n", "\npool", "p\u00e9", "p\u0661"],
)
def test_a_pool_cannot_be_called(name: str) -> None:
    assert not is_valid_pool_name(name)


def test_a_config_has_what_it_was_made_of() -> None:
    config = Config("fast", "ebs", {"iops": 30, "kind": "ssd"})
    assert (config.name, config.provider, config.attrs) == ("fast", "ebs", {"iops": 30, "kind": "ssd"})


def test_a_config_changes_neither_with_what_it_was_made_of_nor_with_what_it_gave_out() -> None:
    attrs = {"iops": 30}
    config = Config("fast", "ebs", attrs)
    attrs["iops"] = 40
    config.attrs["more"] = 1
    assert config.attrs == {"iops": 30}


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", "x"), ("empty", ""), ("number", None), ("flag", None), ("bytes", None), ("none", None), ("absent", None)],
)
def test_an_attribute_is_a_text_or_none(name: str, value: str | None) -> None:
    attrs = {"text": "x", "empty": "", "number": 5, "flag": True, "bytes": b"x", "none": None}
    assert Config("p", "ebs", attrs).value_string(name) == value


def test_configs_are_equal_if_all_their_parts_are() -> None:
    config = Config("p", "ebs", {"a": 1})
    assert config == Config("p", "ebs", {"a": 1})
    for other in (Config("q", "ebs", {"a": 1}), Config("p", "gce", {"a": 1}), Config("p", "ebs", {"a": 2}), "p"):
        assert config != other


def test_an_attribute_that_is_not_called_by_a_text_is_refused() -> None:
    attrs: Any = {5: "x"}
    with pytest.raises(InvalidArgument):
        Config("p", "ebs", attrs)


def test_a_config_does_not_show_its_secrets() -> None:
    config = Config("p", "ebs", {"secret-key": "hunter2", "nested": {"password": "hunter2"}})
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)


def test_the_enumerations_are_those_of_juju() -> None:
    assert [(scope.name, scope.value) for scope in Scope] == [("ENVIRON", 0), ("MACHINE", 1)]
    assert [(kind.name, kind.value) for kind in StorageKind] == [("UNKNOWN", 0), ("BLOCK", 1), ("FILESYSTEM", 2)]
    assert [str(kind) for kind in StorageKind] == ["unknown", "block", "filesystem"]
    assert [(kind.name, str(kind)) for kind in storage.DeviceType] == [("LOCAL", "local"), ("ISCSI", "iscsi")]


def test_the_keys_are_those_of_juju() -> None:
    assert storage.CONFIG_STORAGE_DIR == "storage-dir"
    assert storage.K8S_STORAGE_CLASS == "storage-class"
    assert storage.K8S_STORAGE_PROVISIONER == "storage-provisioner"
    assert storage.K8S_STORAGE_MEDIUM == storage.K8S_STORAGE_MEDIUM_CONST == "storage-medium"
    assert storage.K8S_STORAGE_MODE == "storage-mode"
    assert storage.K8S_STORAGE_MEDIUM_MEMORY == "Memory"
    assert storage.K8S_STORAGE_MEDIUM_HUGE_PAGES == "HugePages"


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"iops": 30, "medium": "foo"},
        {"storage-class": "fast"},
        {"storage-class": "fast", "storage-provisioner": "aws"},
        {"storage-medium": "Memory"},
        {"storage-medium": "HugePages"},
        *({"storage-mode": mode} for mode in ["ReadOnlyMany", "ROX", "ReadWriteMany", "RWX", "ReadWriteOnce", "RWO"]),
        {"storage-class": "c", "storage-provisioner": "p", "storage-medium": "Memory", "storage-mode": "RWX"},
    ],
)
def test_pods_can_have_storage_with(attrs: storage.Attrs) -> None:
    check_kubernetes_attrs(attrs)


@pytest.mark.parametrize(
    ("attrs", "error", "message"),
    [
        ({"storage-medium": "foo"}, InvalidArgument, r'^storage medium "foo" not valid$'),
        ({"storage-medium": "memory"}, InvalidArgument, r'^storage medium "memory" not valid$'),
        ({"storage-mode": "x"}, NotSupported, r'^storage mode "x" not supported$'),
        ({"storage-mode": "ReadWriteOncePod"}, NotSupported, r'^storage mode "ReadWriteOncePod" not supported$'),
        ({"storage-class": 5}, InvalidArgument, "storage-class"),
        ({"storage-class": "c", "storage-provisioner": 5}, InvalidArgument, "storage-provisioner"),
        (
            {"storage-provisioner": "aws"},
            InvalidArgument,
            r"^storage-class must be specified if storage-provisioner is specified$",
        ),
    ],
)
def test_pods_cannot_have_storage_with(attrs: storage.Attrs, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_kubernetes_attrs(attrs)


def test_a_registry_gives_out_its_providers() -> None:
    loop, ebs = Bare(), Bare()
    registry = StaticProviderRegistry({"loop": loop, "ebs": ebs})
    assert registry.storage_provider_types() == ["ebs", "loop"]
    assert registry.storage_provider("loop") is loop
    assert registry.storage_provider("ebs") is ebs


@pytest.mark.parametrize(
    "registry",
    [
        StaticProviderRegistry({}),
        StaticProviderRegistry({"loop": Bare()}),
        ChainedProviderRegistry([]),
        ChainedProviderRegistry([StaticProviderRegistry({"loop": Bare()}), StaticProviderRegistry({})]),
    ],
)
def test_a_provider_that_no_registry_has_is_not_found(registry: ProviderRegistry) -> None:
    with pytest.raises(DriverNotFound, match=r'^storage provider "x" not found$'):
        registry.storage_provider("x")


def test_the_first_registry_of_a_chain_that_has_a_provider_gives_it() -> None:
    first, second, third = Bare(), Bare(), Bare()
    chain = ChainedProviderRegistry(
        [StaticProviderRegistry({"b": first}), StaticProviderRegistry({"b": second, "a": third}), Broken()]
    )
    assert chain.storage_provider("b") is first
    assert chain.storage_provider("a") is third


def test_a_chain_has_the_types_of_one_after_the_other() -> None:
    first = StaticProviderRegistry({"c": Bare(), "b": Bare()})
    assert ChainedProviderRegistry([]).storage_provider_types() == []
    chain = ChainedProviderRegistry([first, StaticProviderRegistry({"b": Bare(), "a": Bare()})])
    assert chain.storage_provider_types() == ["b", "c", "a", "b"]


def test_a_chain_stops_at_a_registry_that_does_not_work() -> None:
    chain = ChainedProviderRegistry([StaticProviderRegistry({}), Broken(), StaticProviderRegistry({"x": Bare()})])
    with pytest.raises(InvalidArgument, match=r'^getting storage provider "x": out of order$'):
        chain.storage_provider("x")
    with pytest.raises(InvalidArgument, match=r"out of order$"):
        chain.storage_provider_types()


def test_a_registry_that_is_not_implemented_says_so() -> None:
    registry = NotImplementedProviderRegistry()
    with pytest.raises(NotSupported, match=r'^"StorageProviderTypes" not implemented$'):
        registry.storage_provider_types()
    with pytest.raises(NotSupported, match=r'^"StorageProvider" not implemented$'):
        registry.storage_provider("x")
    with pytest.raises(NotSupported, match=r'^getting storage provider "x": "StorageProvider" not implemented$'):
        ChainedProviderRegistry([registry]).storage_provider("x")


@pytest.mark.parametrize(("name", "fields"), RECORDS.items(), ids=RECORDS)
def test_a_record_has_the_fields_of_juju(name: str, fields: list[str]) -> None:
    assert sorted(getattr(storage, name).__struct_fields__) == sorted(fields)


@pytest.mark.parametrize(("embedded", "names"), EMBEDDED.items(), ids=EMBEDDED)
def test_a_record_is_also_what_juju_embeds_in_it(embedded: str, names: list[str]) -> None:
    for name in names:
        assert issubclass(getattr(storage, name), getattr(storage, embedded))


@pytest.mark.parametrize(("kind", "field", "needed"), NUMBERS)
def test_a_number_of_a_record_has_64_bits(kind: type[msgspec.Struct], field: str, needed: dict[str, Any]) -> None:
    assert getattr(kind(**needed, **{field: MAX}), field) == MAX
    for value in (-1, MAX + 1):
        with pytest.raises(InvalidArgument):
            kind(**needed, **{field: value})

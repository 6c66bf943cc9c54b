"""BackendContract: the tests that a backend must pass. Needs pytest and pytest-trio in trio mode.

    class TestShelfBackend(BackendContract):
        @pytest.fixture
        async def backend(self, tmp_path):
            backend = ShelfBackend(tmp_path)
            yield backend
            await backend.aclose()

        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda: ShelfBackend(tmp_path)

`backend` is a fresh, empty one. `reopen` makes another instance on the same store, as another process
would; leave it out where there can be none (then the tests that need it are skipped). Tests of ranges that are no whole
blocks are skipped where `Traits.block` has them refused, and then it is tested that they are.
"""

from fusevol.testing.backends.base import Reopen
from fusevol.testing.backends.content import ContentRules
from fusevol.testing.backends.instances import InstanceRules
from fusevol.testing.backends.manifests import ManifestRules
from fusevol.testing.backends.space import SpaceRules
from fusevol.testing.backends.volumes import VolumeRules

__all__ = ["BackendContract", "Reopen"]


class BackendContract(VolumeRules, ContentRules, SpaceRules, ManifestRules, InstanceRules):
    """Subclass it as Test..., and supply the fixture `backend` and, where possible, `reopen`."""

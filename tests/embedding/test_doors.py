"""The promised import paths, with the add-ons there, absent and broken."""

import importlib
import sys
from importlib.machinery import ModuleSpec

import pytest

import dj_queue_asgi
import dj_queue_gunicorn
from dj_queue.exceptions import DjQueueError, MissingAddonError

DOORS = pytest.mark.parametrize(
    ("door", "addon", "names"),
    [
        ("dj_queue.contrib.asgi", dj_queue_asgi, ["DjQueueLifespan"]),
        ("dj_queue.contrib.gunicorn", dj_queue_gunicorn, ["post_fork", "worker_exit"]),
    ],
)


class Finder:
    """Finds `name` absent, or broken in the way that `code` does it."""

    def __init__(self, name, code=None):
        self.name = name
        self.code = code

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        if self.code is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code, module.__dict__)


@pytest.fixture
def found(monkeypatch):
    """Import a door while its add-on is found as `Finder` says."""

    def load(door, addon, code=None):
        for name in [*sys.modules]:
            if name in (door, addon) or name.startswith(f"{addon}."):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Finder(addon, code), *sys.meta_path])
        return importlib.import_module(door)

    return load


@DOORS
class TestDoors:
    def test_open(self, door, addon, names):
        module = importlib.import_module(door)
        assert sorted(module.__all__) == names
        for name in names:
            assert getattr(module, name) is getattr(addon, name)

    def test_without_the_addon_says_what_to_install(self, found, door, addon, names):
        with pytest.raises(MissingAddonError) as raised:
            found(door, addon.__name__)
        distribution = addon.__name__.replace("_", "-")
        assert str(raised.value) == f"{distribution} is not installed. Run: pip install {distribution}"
        assert isinstance(raised.value, ImportError)
        assert isinstance(raised.value, DjQueueError)
        assert isinstance(raised.value.__cause__, ModuleNotFoundError)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("import there_is_no_such_module", ModuleNotFoundError),
            ("from os import there_is_no_such_name", ImportError),
            ("1 / 0", ZeroDivisionError),
            ("", ImportError),  # too old or too new to have the names
        ],
    )
    def test_a_broken_addon_shows_its_own_error(self, found, door, addon, names, code, error):
        with pytest.raises(error) as raised:
            found(door, addon.__name__, code)
        assert not isinstance(raised.value, MissingAddonError)

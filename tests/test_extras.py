import pytest

from latentsync.errors import BackendUnavailable
from latentsync.runtime import extras
from latentsync.runtime.extras import install_command, needs_extra


def test_a_checkout_installs_itself_and_a_package_comes_from_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert install_command("serve") == "pip install 'latentsync[serve]'"
    (tmp_path / "pyproject.toml").touch()
    assert install_command("serve") == "pip install -e '.[serve]'"


def test_what_is_missing_is_named_with_the_command():
    with pytest.raises(BackendUnavailable) as missing, needs_extra("the page", "app"):
        import no_such_package  # noqa: F401
    wanted = f"the page needs no_such_package; install it by {install_command('app')}"
    assert str(missing.value) == wanted


def test_a_library_that_can_t_be_loaded_says_why():
    with pytest.raises(BackendUnavailable, match="can't be loaded") as broken:  # noqa: SIM117
        with needs_extra("training", "train"):
            raise ImportError("libx.so: cannot open shared object file")
    assert "libx.so" in str(broken.value)

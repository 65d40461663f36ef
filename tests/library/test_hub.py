"""A look-up on the hub fails at once where there is no hub, and leaves the libraries as they were."""

from __future__ import annotations

import socket

import datasets
import pytest
from huggingface_hub import constants

from pruner_lib.data import assets
from pruner_lib.data.assets import hub_lookup


@pytest.fixture
def online(monkeypatch):
    """Both libraries believe that they are online; the hub is a closed port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    return endpoint


def look_up():
    return hub_lookup("model 'x/y'", "Try that.", datasets.config)


def settings():
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_unreachable_hub_is_found_out_at_once_and_only_the_cache_is_read(online):
    message = "model 'x/y' was not found .*can't be reached.*Try that.*gone"
    with pytest.raises(ValueError, match=message), look_up():
        assert settings() == (True, True)
        raise FileNotFoundError("gone")
    assert settings() == (False, False)


def test_reachable_hub_is_asked(online, monkeypatch):
    monkeypatch.setattr(assets, "_unreachable", lambda endpoint: None)
    message = f"'x/y' was not found on {online}. Try that."
    with pytest.raises(ValueError, match=message), look_up():
        assert settings() == (False, False)
        raise OSError("404")


def test_what_is_found_passes_and_so_do_other_errors(online):
    with look_up():
        found = True
    assert found and settings() == (False, False)
    with (
        pytest.raises(ValueError, match="^no decoder$"),
        look_up(),
    ):
        raise ValueError("no decoder")
    assert settings() == (False, False)


def test_offline_mode_stays_on(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with (
        pytest.raises(ValueError, match="offline mode is set"),
        look_up(),
    ):
        raise OSError("404")
    assert constants.HF_HUB_OFFLINE

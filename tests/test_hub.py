"""A hub that does not answer: said once, within seconds, and what is in its cache is used."""

import logging

import pytest
from huggingface_hub import constants

from visrl.errors import UsageError
from visrl.runs import hub


@pytest.fixture(autouse=True)
def nobody_there(tmp_path, monkeypatch):
    """Port 9 of this machine, the discard service, which nobody runs."""
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        for name in (proxy, proxy.upper()):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub._silence.cache_clear()
    yield
    hub._silence.cache_clear()


def test_a_checkpoint_that_is_not_in_the_cache_is_one_error(caplog):
    with caplog.at_level(logging.INFO, "visrl"), pytest.raises(UsageError) as caught:
        hub.require_checkpoint("org/name")
    assert "cannot load org/name: no such folder, 127.0.0.1 does not answer (Connection refused)" in str(caught.value)
    assert "HF_HOME" in caught.value.hint and not caplog.text


def test_one_in_the_cache_is_used_and_that_is_said_once(tmp_path, caplog):
    """As the hub's cache lays it out: refs/main names a commit, and its snapshot holds the files."""
    place = tmp_path / "models--org--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("a" * 40)
    (place / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    with caplog.at_level(logging.INFO, "visrl"):
        hub.require_checkpoint("org/name")
        hub.require_checkpoint("org/name")
    assert caplog.text.count("127.0.0.1 does not answer (Connection refused): only what is in the cache is used") == 1

"""Log lines at import: those that are known to say nothing are dropped, the others are not."""

from __future__ import annotations

import logging

import pytest

from prune_export.chatter import silence_torchao


@pytest.fixture
def fresh_loggers() -> None:
    for name in ("torchao", "torch.utils._pytree"):
        logger = logging.getLogger(name)
        for item in list(logger.filters):
            logger.removeFilter(item)


@pytest.mark.usefixtures("fresh_loggers")
def test_known_lines_are_dropped_and_others_pass(caplog: pytest.LogCaptureFixture) -> None:
    torchao, pytree = logging.getLogger("torchao"), logging.getLogger("torch.utils._pytree")

    def speak() -> list[str]:
        caplog.clear()
        torchao.warning("Failed to load a.so: no such symbol")
        pytree.warning("%s is an Enum subclass and is now natively supported", "kind")
        torchao.warning("something else")
        pytree.warning("%s is wrong", "this")
        return caplog.messages

    with caplog.at_level(logging.WARNING):
        assert len(speak()) == 4
        silence_torchao()
        silence_torchao()
        assert speak() == ["something else", "this is wrong"]
    assert len(torchao.filters) == 1

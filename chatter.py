"""Log lines that libraries print while they are imported, which a user can do nothing about."""

from __future__ import annotations

import logging


class _Without(logging.Filter):
    """Lets pass what does not begin with certain words."""

    def __init__(self, *beginnings: str) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.beginnings)


_FILTERS = {
    "torchao": _Without("Failed to load "),
    "torch.utils._pytree": _Without("%s is an Enum subclass"),
}


def silence_torchao() -> None:
    """transformers imports torchao where it is installed (Neural Compressor brings it along).

    It reports every native library of another machine's, and calls a function of torch that is on its way out.
    """
    for name, filtering in _FILTERS.items():
        logging.getLogger(name).addFilter(filtering)  # the same one twice counts once

"""A command line by argparse that ends wrong use as every other command does: ``error: …``, ``hint: …``, exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from visrl.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError for what it cannot read."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")

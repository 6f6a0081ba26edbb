"""The command line in this process, for requests that are refused before anything is started.

A process of its own takes a second to import what the refusal does not need. That a process ends so too is shown once
for each command.
"""

from __future__ import annotations

import sys

import pytest

from sidecar.cli import main


def refusal(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command says of a request that is wrong: one line on standard error, and nothing else; status 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rankguard", *args])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, ""), err
    assert err.startswith("rankguard: ")
    assert err.count("\n") == 1
    return err

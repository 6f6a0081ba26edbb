"""A real `rankguard run` tests its own rights: once its engine is there, on that engine's ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from life_parts import Ranks, ask, metric, port_of
from sidecar_process import Sidecar, eventually


def test_the_rights_of_a_real_run(tmp_path: Path) -> None:
    """They are tried on the ranks that the guard watches, shown beside the guard's own, and nothing is disturbed."""
    with Ranks() as engine:
        engine.start()
        with Sidecar(tmp_path / "dumps", *engine.flags) as sidecar:
            sidecar.wait_serving()
            for capability in ("signals", "ptrace", "volume"):
                # Of the lowest priority: on a busy machine this takes its time.
                eventually(
                    lambda name=capability: metric(sidecar, "capability_available", capability=name) == 1,
                    f"{capability} in the metrics\n{sidecar.log()}", 90.0,
                )  # fmt: skip
            _, text = ask(port_of(sidecar), "/metrics")
            assert text.count('capability="pidfd"') == 1
            assert sidecar.incidents() == []
            assert all(process.poll() is None for process in engine.processes)


@pytest.mark.root
def test_a_run_without_ptrace_says_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the log, before any incident; and the kill needs none of it."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-all,+kill --inh-caps=-all {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    with Ranks() as engine:
        engine.start()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(wrapper))
            sidecar = Sidecar(tmp_path / "dumps", *engine.flags)
        with sidecar:
            sidecar.wait_serving()
            line = sidecar.wait("a capability is missing", 90.0, capability="ptrace")
            assert line["lost"] == "No Python stacks: the record does not say where the ranks stood."
            _, text = ask(port_of(sidecar), "/metrics")
            assert 'rankguard_capability_available{capability="ptrace"} 0.0' in text
            assert len([one for one in sidecar.events("a capability is missing") if one["capability"] == "ptrace"]) == 1
            engine.kill(1)
            assert engine.collect() == [-9, -9]
            eventually(lambda: sidecar.incidents(), f"the incident\n{sidecar.log()}")

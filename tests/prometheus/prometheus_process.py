"""A real Prometheus for tests: its data in a folder of the test's, a port that the system picked, never left over."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from prepare_prometheus import Programs
from sidecar_process import eventually


class Prometheus:
    """Scrapes `targets` (`{address: labels}`) each second and evaluates `rules` as often. Use as a context manager."""

    def __init__(
        self, programs: Programs, folder: Path, targets: Mapping[str, Mapping[str, str]], rules: Sequence[Path] = ()
    ) -> None:
        folder.mkdir()
        self._log = folder / "log"
        scrape = {
            "job_name": "rankguard",
            "static_configs": [{"targets": [address], "labels": dict(labels)} for address, labels in targets.items()],
        }
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [scrape] if targets else [],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    programs.prometheus, f"--config.file={folder / 'prometheus.yml'}", "--log.format=json",
                    f"--storage.tsdb.path={folder / 'data'}", "--storage.tsdb.retention.time=1h",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
            )  # fmt: skip
        self._client = httpx.Client(timeout=20, trust_env=False)

    def __enter__(self) -> Prometheus:
        try:
            address = eventually(self._address, f"Prometheus listening\n{self.log()}")
            self._base = f"http://{address}"
            eventually(self._is_ready, f"Prometheus ready\n{self.log()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.process.kill()
        self.process.wait(20)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API. Raises `AssertionError` with what it said where it is an error."""
        answer = self._client.get(f"{self._base}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result = self.get("query", query=expression)["result"]
        assert isinstance(result, list), result
        return result

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """What of this alert is pending or firing."""
        return [alert for alert in self.get("alerts")["alerts"] if alert["labels"]["alertname"] == name]

    def _address(self) -> str | None:
        assert self.process.poll() is None, self.log()
        for text in self.log().splitlines():
            if '"Listening on"' in text and text.endswith("}"):
                return str(json.loads(text)["address"])
        return None

    def _is_ready(self) -> bool:
        return self._client.get(f"{self._base}/-/ready").status_code == 200

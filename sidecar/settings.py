"""Every setting of `rankguard run` once: type, unit, what None means, and why this default.

Stdlib only, since every process carries the parsed value. Reading flags, environment and files is `config.py`'s
work; this value is what it hands over, and nothing changes it afterwards.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from typing import Any

from sidecar.model import Action, PodInfo

# In the environment of everything that a wrapped command starts. Not RANKGUARD_…: those are settings.
ENGINE_VARIABLE = "_RANKGUARD_WRAPPED"

# The collectors by name, cheapest first. The last is taken only where it is asked for.
CAPTURES = (
    "process", "pyspy", "metrics", "nccl_ras", "flight_recorder", "nvml", "pyspy_native", "cuda_coredump",
    "crash_folder",
)  # fmt: skip


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field whose metadata holds its help text and what is allowed.

    `minimum`, `maximum`: for numbers. `choices`: for words. `kind`: for texts that need a check of their own
    (`regex`, `listen`, `folder`, `file`, `inside`, `captures`, `features`, `size`, `name`, `names`, `object`, `url`,
    `secret`); a number of kind `optional` may be none. `hidden`: not shown in `--help`.
    """
    metadata = {"help": help, **limits}
    if isinstance(default, (list, dict)):
        raise TypeError("defaults are immutable")
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The parsed settings. A duration is in seconds."""

    # What to watch.
    engine: str = _setting(
        "auto", "Which engine to expect. auto tells by the processes' titles and command lines.",
        choices=("auto", "sglang", "vllm", "generic"),
    )  # fmt: skip
    rank_pattern: str | None = _setting(
        None, "Regular expression over a process's command line that tells a rank (engine generic; named groups become"
        " the rank's label: (?P<TP>\\d+) gives TP3). Unset: processes with RANK and WORLD_SIZE in their environment,"
        " as torchrun starts them.", kind="regex",
    )  # fmt: skip
    expected_ranks: int | None = _setting(
        None, "How many ranks the engine has. Unset: read from the engine's command line (--tp-size and the like).",
        minimum=1, maximum=65536,
    )  # fmt: skip
    root_pid: int | None = _setting(
        None, "Watch only this process and its descendants. Unset: every process of the PID namespace but Rankguard's"
        " own container.", minimum=2,
    )  # fmt: skip

    # What to do.
    on_rank_death: Action = _setting(
        Action.KILL, "What to do when a rank dies. kill: freeze, capture, kill the engine. capture: freeze, capture,"
        " let it run. observe: only record.", choices=tuple(a.value for a in Action),
    )  # fmt: skip
    on_liveness_failure: Action = _setting(
        Action.KILL, "What to do when the engine is found stuck or dead. kill: capture while it runs, then freeze and"
        " kill the engine. capture: capture, leave it as it is. observe: only record.",
        choices=tuple(a.value for a in Action),
    )  # fmt: skip
    captures: tuple[str, ...] = _setting(
        CAPTURES[:-1], "Evidence to collect, comma-separated; none for no evidence at all. crash_folder is what the"
        " engine wrote to its own crash folder: it holds users' prompts, so it is collected only where asked for.",
        kind="captures", choices=CAPTURES,
    )  # fmt: skip
    death_deadline: float = _setting(
        3.0, "Seconds for all evidence after a death. The survivors stand still meanwhile.", minimum=0.0, maximum=600.0
    )
    liveness_deadline: float = _setting(
        60.0, "Seconds for all evidence of an engine that is stuck or dead, CUDA coredumps included. It runs on"
        " meanwhile.", minimum=0.0, maximum=3600.0,
    )  # fmt: skip
    reap_timeout: float = _setting(
        60.0, "Seconds after the kill before a process that has not gone counts as a reap timeout.",
        minimum=1.0, maximum=3600.0,
    )  # fmt: skip
    startup_timeout: float = _setting(
        600.0, "Seconds from the engine's first process until all expected ranks must exist. Their processes appear"
        " early, long before the weights are loaded.", minimum=1.0, maximum=86400.0,
    )  # fmt: skip
    exit_grace: float = _setting(
        5.0, "Seconds in which the rest of the engine may follow a process that ended with 0 or by SIGTERM; if it all"
        " does, that was a clean stop.", minimum=0.0, maximum=600.0,
    )  # fmt: skip

    # Whether it is alive.
    health_url: str = _setting(
        "auto", "URL that a healthy engine answers with 2xx. auto: the engine's own, on the port that its command line"
        " says. none: it is not asked.", kind="url",
    )  # fmt: skip
    metrics_url: str = _setting(
        "auto", "URL of the engine's own Prometheus metrics, which tell whether work waits and whether it moves. auto:"
        " as for --health-url. none: they are not read.", kind="url",
    )  # fmt: skip
    termination_grace_period: float | None = _setting(
        None, "The pod's terminationGracePeriodSeconds, to be checked: a preStop hook takes up to 10 s more than"
        " --liveness-deadline, and then the engine stops. Unset: read from the API server where the pod may be read.",
        minimum=0.0, maximum=86400.0 * 7, kind="optional",
    )  # fmt: skip
    probe_period: float = _setting(
        10.0, "Seconds between two looks at the engine: its health, its metrics, the state of its ranks.",
        minimum=0.1, maximum=3600.0,
    )  # fmt: skip
    probe_timeout: float = _setting(
        5.0, "Seconds that the engine has for an answer. SGLang's health check takes 1 s when all is well.",
        minimum=0.1, maximum=600.0,
    )  # fmt: skip
    probe_failures: int = _setting(
        3, "Health checks that must fail in a row before they count. None counts before the first success.",
        minimum=1, maximum=1000,
    )  # fmt: skip
    stall_timeout: float = _setting(
        30.0, "Seconds without progress after which the engine counts as stuck where there is evidence of it: ranks at"
        " rest while work waits, or one rank elsewhere than all the others.", minimum=1.0, maximum=86400.0,
    )  # fmt: skip
    stall_limit: float = _setting(
        300.0, "Seconds without progress after which it counts as stuck although its ranks look busy: on a GPU a rank"
        " that waits for ever looks like one that computes.", minimum=1.0, maximum=86400.0,
    )  # fmt: skip
    hook_token: str | None = _setting(
        None, "What a caller of /hooks/prestop must send as X-Rankguard-Token. Unset: anybody may call it; it kills"
        " nothing by itself, but for two minutes the engine's exits then count as a stop.", kind="secret",
    )  # fmt: skip
    pod_group: str = _setting(
        "", "Name of the LeaderWorkerSet or JobSet group that the pod is part of (downward API). A failure on one node"
        " deletes its peers, so there a deletion while requests run is recorded too.", kind="name",
    )  # fmt: skip

    termination_log: str | None = _setting(
        "/dev/termination-log", "File in the engine's containers that a line is written to before a kill: the kubelet"
        " shows it as why the container ended. The containers' terminationMessagePath, where they set one. none: no"
        " line is written.", kind="inside",
    )  # fmt: skip

    # Where to write and listen.
    dump_dir: str = _setting(
        "/var/lib/rankguard", "Folder for incidents; made if absent. In a pod, the pod's own folder of the volume.",
        kind="folder",
    )  # fmt: skip
    dump_max_bytes: int = _setting(
        10 * 2**30, "Bytes that all incidents together may take; the oldest go first.", minimum=2**20, kind="size"
    )
    dump_max_incidents: int = _setting(200, "How many incidents are kept; the oldest go first.", minimum=1)
    dump_max_age: float | None = _setting(
        30 * 86400.0, "Seconds after which an incident is removed. none: they are kept for ever.",
        minimum=60.0, maximum=10 * 365 * 86400.0, kind="optional",
    )  # fmt: skip
    dump_free_floor: int = _setting(
        64 * 2**20, "Bytes of the volume that are always left free: nothing but a few MiB of text is written below it.",
        minimum=0, kind="size",
    )  # fmt: skip
    dump_volume_limit: int | None = _setting(
        None, "The sizeLimit of the emptyDir that --dump-dir is on. At most 80 % of it is used, since going over it"
        " evicts the engine's pod. Unset: the volume is not an emptyDir with a limit.", minimum=2**20, kind="size",
    )  # fmt: skip
    coredump_max_bytes: int = _setting(
        4 * 2**30, "Bytes that one CUDA coredump may have; what is larger is left where it is.",
        minimum=2**20, kind="size",
    )  # fmt: skip
    full_incidents_per_hour: int = _setting(
        6, "Incidents an hour that are captured in full, counted on the volume; a crash loop's further ones are"
        " summaries with a count.", minimum=1, maximum=3600,
    )  # fmt: skip
    listen: str | None = _setting(
        ":21400", "HOST:PORT for machines (/metrics, /healthz, /readyz, /livez, /hooks/prestop). An empty host"
        " is every interface, IPv4 and IPv6. none switches it off.", kind="listen",
    )  # fmt: skip
    api_listen: str | None = _setting(
        "127.0.0.1:21401", "HOST:PORT for people (/api/v1/...). none switches it off. Beyond loopback only with"
        " --api-token-file.", kind="listen",
    )  # fmt: skip
    api_token_file: str | None = _setting(
        None, "File with the bearer token that the people's port asks for. Unset: no token, loopback only.", kind="file"
    )

    # What to tell Kubernetes, and to ask of it. All of it is nothing where there is no service account's token.
    kubernetes_events: bool = _setting(
        True, "Tell of incidents by Events on the pod, which kubectl describe shows. Takes the right to create events."
    )
    kubernetes_annotation: bool = _setting(
        False, "Name the last incident in the pod's annotation rankguard.dev/last-incident. Takes the right to patch"
        " pods.",
    )  # fmt: skip
    after_kill: str = _setting(
        "none", "What to do once the engine was killed and its evidence is saved. delete-pod: delete the pod, so that"
        " another node may get it; takes the right to delete pods. exit: end Rankguard's own container with"
        " --after-kill-exit-code, for restartPolicyRules that restart all containers; never in a LeaderWorkerSet.",
        choices=("none", "delete-pod", "exit"),
    )  # fmt: skip
    after_kill_exit_code: int = _setting(
        86, "The exit code for --after-kill exit, which the container's restartPolicyRules must name.",
        minimum=1, maximum=255,
    )  # fmt: skip
    after_kill_per_hour: int = _setting(
        2, "How often an hour --after-kill does anything, counted on the volume, since both ways go past the kubelet's"
        " back-off.", minimum=1, maximum=3600,
    )  # fmt: skip
    fleet_switch: str = _setting(
        "", "NAMESPACE/NAME of a ConfigMap, read every 15 s: while its key mode is observe, nothing is frozen, captured"
        " or killed here. Takes the right to get it. Unset: there is none.", kind="object",
    )  # fmt: skip
    target_container: str = _setting(
        "", "Names of the engine's containers, comma-separated: what Events are about while it is not known from the"
        " pod's status.", kind="names",
    )  # fmt: skip
    target_probe_window: float | None = _setting(
        None, "Seconds of a hang after which the kubelet stops the engine by the engine's own liveness probe, at the"
        " earliest (failureThreshold less one, times periodSeconds, and timeoutSeconds), where no preStop hook calls"
        " Rankguard: then it decides, and takes its evidence, sooner. Unset: nobody else stops it.",
        minimum=1.0, maximum=86400.0, kind="optional",
    )  # fmt: skip
    service_account_dir: str = _setting(
        "/var/run/secrets/kubernetes.io/serviceaccount", "Folder with the token and ca.crt for the API server.",
        kind="folder",
    )  # fmt: skip

    # How to talk.
    log_format: str = _setting("text", "One line per transition.", choices=("text", "json"))

    # Where we are.
    in_pod: bool = _setting(
        False, "Stay up whatever is set wrong (set by the image): a bad setting means its default and action observe."
    )
    pod_namespace: str = _setting("", "The pod's namespace (downward API).", kind="name")
    pod_name: str = _setting("", "The pod's name (downward API).", kind="name")
    pod_uid: str = _setting("", "The pod's uid (downward API); the counters are kept by it.", kind="name")
    node_name: str = _setting("", "The node's name (downward API).", kind="name")

    mask_features: tuple[str, ...] = _setting(
        (), "Kernel features to do without, comma-separated. For tests of older kernels' ways.", kind="features",
        choices=("pidfd", "thread_pidfd", "pidfd_hup", "pidfd_info"), hidden=True,
    )  # fmt: skip

    @property
    def pod(self) -> PodInfo:
        return PodInfo(namespace=self.pod_namespace, name=self.pod_name, uid=self.pod_uid, node=self.node_name)

    @property
    def liveness_seconds(self) -> float:
        """For the evidence of a liveness failure. Where the kubelet's own probe ends the engine, what is left of that
        after the half in which it was found, and a margin.
        """
        window = self.target_probe_window
        return self.liveness_deadline if window is None else min(self.liveness_deadline, 0.4 * window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the command line hands to the supervisor, and the supervisor to the others.

    `command` is the engine to start in wrap mode, () in attach mode. `listen_fds` are listening sockets already
    bound, by setting name. `config_errors` are the lines about settings that were refused in a pod. `root_start` is
    the start time of --root-pid's process, 0 where there is none: a pid alone is somebody else's one day. `python` is
    the interpreter and `package_root` the folder that holds the package `sidecar`.
    """

    settings: Settings
    command: tuple[str, ...] = ()
    config_errors: tuple[str, ...] = ()
    listen_fds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    python: str = ""
    package_root: str = ""
    engine_marker: str = ""
    root_start: int = 0


def launch_to_fd(launch: Launch) -> int:
    """A memfd holding `launch` as JSON; it survives exec (it is inheritable) and is read again by `launch_from_fd`."""
    fd = os.memfd_create("rankguard-settings", 0)
    os.set_inheritable(fd, True)
    settings = {f.name: getattr(launch.settings, f.name) for f in fields(Settings)}
    data = {f.name: getattr(launch, f.name) for f in fields(Launch)}
    os.write(fd, json.dumps({**data, "settings": settings}).encode())
    return fd


def launch_from_fd(fd: int) -> Launch:
    """Read what `launch_to_fd` wrote, from the start, any number of times."""
    data = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    settings = data.pop("settings")
    for name in ("on_rank_death", "on_liveness_failure"):
        settings[name] = Action(settings[name])
    for name in ("captures", "mask_features"):
        settings[name] = tuple(settings[name])
    data["command"] = tuple(data["command"])
    data["config_errors"] = tuple(data["config_errors"])
    data["listen_fds"] = {name: tuple(fds) for name, fds in data["listen_fds"].items()}
    return Launch(settings=Settings(**settings), **data)

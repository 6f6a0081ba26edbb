"""`rankguard run` up to the moment it becomes the supervisor: what it refuses and how, what it hands over.

Every process started here is told to watch one sleeping child of ours and only to observe, so that a line which should
have been refused and was not cannot touch anything else on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar import listening
from sidecar.commands import preflight
from sidecar.commands import run as run_module
from sidecar.commands.run import Given, package_root, prepare, run, supervisor_argv
from sidecar.errors import UsageError
from sidecar.model import Action
from sidecar.settings import Launch
from sidecar.system.proc import Proc
from sidecar.version import VERSION

ROOT = package_root()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A child of ours that does nothing."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def harmless(sleeper, tmp_path) -> dict[str, str]:
    """An environment in which a run that starts after all does no harm."""
    return CLEAN | {
        "RANKGUARD_ROOT_PID": str(sleeper),
        "RANKGUARD_ON_RANK_DEATH": "observe",
        "RANKGUARD_LISTEN": "none",
        "RANKGUARD_API_LISTEN": "none",
        "RANKGUARD_DUMP_DIR": str(tmp_path / "dump"),
    }


def rankguard(*args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The real command, in a group of its own, ended with all its children if it does not end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", *args],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def the_line(result: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """The one line that says what was wrong; nothing else may have been printed."""
    assert (result.returncode, result.stdout) == (status, ""), result
    (line,) = result.stderr.splitlines()
    assert line.startswith("rankguard: ")
    return line.removeprefix("rankguard: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--death-deadline", "abc"], ["--death-deadline", "'abc'", "from 0 to 600"]),
        (["--rank-pattern", "rank_(\\d+"], ["--rank-pattern", "'rank_(\\\\d+'", "position 5"]),
        (["--config", "/none.yaml"], ["--config", "'/none.yaml'", "No such file"]),
        (["--root-pid", "4194999"], ["--root-pid", "4194999", "no such process"]),
        (["--stall-limit", "20"], ["--stall-limit", "20", "at least --stall-timeout, 30"]),
        (["--health-url", "engine:30000"], ["--health-url", "'engine:30000'", "http:// or https://"]),
        (["--listen", "nonsense"], ["--listen", "'nonsense'", "HOST:PORT"]),
        (["--dump-dir", "/proc/none"], ["--dump-dir", "'/proc/none'", "cannot be made or written"]),
        (["--api-listen", "0.0.0.0:0"], ["--api-listen", "'0.0.0.0:0'", "--api-token-file"]),
        (["--no-such-flag", "1"], ["--no-such-flag"]),
        (["--engine"], ["--engine", "requires an argument"]),
        (["python", "server.py"], ["'python'", "after --"]),
        (["--"], ["no command after --"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(harmless, args, words):
    line = the_line(rankguard("run", *args, env=harmless))
    for word in words:
        assert word in line


def test_bad_input_in_the_environment(harmless):
    assert "RANKGUARD_REAP_TIMEOUT: 'inf'" in the_line(
        rankguard("run", env=harmless | {"RANKGUARD_REAP_TIMEOUT": "inf"})
    )
    line = the_line(rankguard("run", env=harmless | {"RANKGUARD_REAPTIMEOUT": "3\n4"}))
    assert "RANKGUARD_REAP_TIMEOUT?" in line


def test_a_port_in_use_is_a_clear_line(harmless):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = the_line(rankguard("run", "--listen", f"127.0.0.1:{port}", env=harmless))
    assert line == f"--listen: '127.0.0.1:{port}' cannot be used: port {port} is in use by another process"


def test_a_command_that_cannot_be_started(harmless, tmp_path):
    """The statuses of a shell: 127 for none, 126 for one that is not executable."""
    text = tmp_path / "notes.txt"
    text.write_text("no program\n")
    assert "no such program" in the_line(rankguard("run", "--", "no-such-engine", "--tp", "2", env=harmless), 127)
    assert "no such program" in the_line(rankguard("run", "--", str(tmp_path / "none"), env=harmless), 127)
    assert "not executable" in the_line(rankguard("run", "--", str(text), env=harmless), 126)
    assert "not executable" in the_line(rankguard("run", "--", str(tmp_path), env=harmless), 126)


def test_a_line_break_in_a_value_stays_one_line(harmless):
    assert r"\n" in the_line(rankguard("run", "--engine", "a\nb\x1b[31m", env=harmless))
    assert r"\n" in the_line(rankguard("run", "--", "no\nsuch", env=harmless), 127)


def test_version_and_help(harmless):
    """Every command explains itself; `run` names each setting that is not hidden, and its default."""
    assert rankguard("--version", env=harmless).stdout == f"rankguard {VERSION}\n"
    for args in (
        [],
        ["run"],
        ["demo"],
        ["capture"],
        ["doctor"],
        ["incidents"],
        *(["incidents", n] for n in ("list", "show", "prune")),
    ):
        result = rankguard(*args, "--help", env=harmless)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: rankguard")
    text = " ".join(rankguard("run", "-h", env=harmless).stdout.split())
    assert "[OPTIONS] [-- CMD…]" in text
    assert "--death-deadline SECONDS" in text
    assert "--termination-log FILE" in text
    assert "[default: 3]" in text
    assert "--mask-features" not in text


# ---- what is handed over

READER = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from sidecar.settings import launch_from_fd
launch = launch_from_fd(int(sys.argv[2]))
assert launch == launch_from_fd(int(sys.argv[2]))
listening = {
    name: [[s.getsockname()[:2], s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
           for s in (socket.socket(fileno=fd) for fd in fds)]
    for name, fds in launch.listen_fds.items()
}
print(json.dumps({
    "command": launch.command, "config_errors": launch.config_errors, "python": launch.python, "pid": os.getpid(),
    "package_root": launch.package_root, "marker": launch.engine_marker, "listening": listening,
    "engine": launch.settings.engine, "action": launch.settings.on_rank_death, "in_pod": launch.settings.in_pod,
    "dump_dir": launch.settings.dump_dir,
    "loaded": sorted(m for m in ("click", "pydantic", "site") if m in sys.modules),
}))
"""

EXEC_INTO = """
import os, sys
from sidecar.commands.run import execute, prepare, run
def execv(path, argv):
    at = argv.index("-c") + 1
    os.execv(path, [*argv[:at], {reader!r}, *argv[at + 1 :]])
context = run.make_context("run", sys.argv[1:])
print(os.getpid(), flush=True)
execute(prepare(context.params, context.obj, os.environ), execv)
"""


def handed_over(*args: str, env: dict[str, str]) -> dict:
    """What the process finds that `rankguard run ARGS` becomes, in place of the supervisor."""
    code = EXEC_INTO.replace("{reader!r}", repr(READER))
    result = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    before, after = result.stdout.splitlines()
    found = json.loads(after)
    assert found["pid"] == int(before)  # exec, not a child: the process that was started is the one that watches
    return found | {"stderr": result.stderr}


def test_the_settings_the_command_and_the_sockets_survive_the_exec(harmless, tmp_path):
    env = harmless | {"RANKGUARD_ENGINE": "vllm", "RANKGUARD_LISTEN": "", "PYTHONPATH": str(tmp_path)}
    found = handed_over("--listen", ":0", "--api-listen", "127.0.0.1:0", "--", "sleep", "--", "1", env=env)
    assert found["command"] == ["sleep", "--", "1"]
    assert found["config_errors"] == []
    assert found["engine"] == "vllm"
    assert found["action"] == "observe"
    assert found["python"] == sys.executable
    assert found["package_root"] == ROOT
    assert len(found["marker"]) == 32
    assert found["loaded"] == []  # neither click nor pydantic nor the engine's site-packages live on
    assert {name: [accepts for _, accepts in socks] for name, socks in found["listening"].items()} == {
        "listen": [1] * len(found["listening"]["listen"]),
        "api_listen": [1],
    }


def test_attach_has_no_marker_and_what_is_off_has_no_socket(harmless):
    found = handed_over(env=harmless)
    assert (found["marker"], found["command"], found["listening"]) == ("", [], {})


def test_a_relative_folder_is_meant_from_where_it_was_said(harmless, tmp_path):
    found = handed_over("--dump-dir", os.path.relpath(tmp_path / "here", ROOT), env=harmless)
    assert found["dump_dir"] == str(tmp_path / "here")
    assert os.listdir(tmp_path / "here") == []
    assert os.stat(tmp_path / "here").st_mode & 0o777 == 0o700


def test_in_a_pod_it_stays_up_whatever_is_wrong(harmless, tmp_path):
    """Bad values, unknown names, flags that are none, a broken file: each is a line, and the run goes on, observing."""
    (tmp_path / "c.yaml").write_text("engine: [\n")
    env = harmless | {
        "RANKGUARD_IN_POD": "1",
        "RANKGUARD_REAP_TIMEOUT": "x",
        "RANKGUARD_NO_SUCH": "s3cr3t",
        "RANKGUARD_ON_RANK_DEATH": "kill",
    }
    found = handed_over("--config", str(tmp_path / "c.yaml"), "--wrong", "1", "--engine", "vllm", "stray", env=env)
    assert found["action"] == "observe"
    assert found["engine"] == "vllm"
    assert found["in_pod"] is True
    assert len(found["config_errors"]) == 5
    words = ["--wrong", "stray", "RANKGUARD_NO_SUCH", "not valid YAML", "RANKGUARD_REAP_TIMEOUT"]
    for word in words:
        assert any(word in line for line in found["config_errors"]), word
        assert word in found["stderr"]
    assert "s3cr3t" not in str(found)


# ---- in this process: what would be handed over


@contextmanager
def prepared(*args: str, env: dict[str, str]) -> Iterator[Launch]:
    context = run.make_context("run", list(args))
    launch = prepare(context.params, context.obj, env)
    try:
        yield launch
    finally:
        for fds in launch.listen_fds.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def quiet(tmp_path) -> dict[str, str]:
    return {"RANKGUARD_LISTEN": "none", "RANKGUARD_API_LISTEN": "none", "RANKGUARD_DUMP_DIR": str(tmp_path)}


@pytest.mark.parametrize(
    "args",
    [["--in-pod=1"], ["--in-pod", "--engine"], ["--in-pod", "-x"], ["--in-pod", "--wrong"], ["--in-pod", "--"]],
)
def test_in_a_pod_no_flag_is_fatal(quiet, args):
    with prepared(*args, env=quiet) as launch:
        assert len(launch.config_errors) == 1
        assert launch.settings.in_pod
        assert launch.settings.on_rank_death is Action.OBSERVE


def test_in_a_pod_a_missing_volume_or_a_busy_port_is_no_bad_setting(quiet, tmp_path, capfd):
    """They come back by themselves: one line, nothing bound, and the engine is still to be killed when a rank dies."""
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        env = quiet | {"RANKGUARD_DUMP_DIR": str(tmp_path / "file"), "RANKGUARD_LISTEN": busy}
        with prepared("--in-pod", env=env) as launch:
            assert launch.config_errors == ()
            assert launch.listen_fds == {}
            assert launch.settings.on_rank_death is Action.KILL
            assert launch.settings.listen == busy
    first, second = capfd.readouterr().err.splitlines()
    assert "RANKGUARD_DUMP_DIR" in first
    assert "in use" in second


def test_in_a_pod_a_token_that_cannot_be_read_shuts_the_peoples_port(quiet, tmp_path):
    """Its default, no token, would open to everyone in the pod what was meant to be guarded."""
    env = quiet | {"RANKGUARD_API_TOKEN_FILE": str(tmp_path / "none"), "RANKGUARD_API_LISTEN": "127.0.0.1:0"}
    for text in (None, "", "two words"):
        if text is not None:
            (tmp_path / "none").write_text(text)
        with prepared("--in-pod", env=env) as launch:
            assert len(launch.config_errors) == 1
            assert launch.settings.api_listen is None
            assert launch.listen_fds == {}


def test_in_a_pod_listening_beyond_loopback_without_a_token_becomes_the_default(quiet):
    with prepared("--in-pod", env=quiet | {"RANKGUARD_API_LISTEN": "0.0.0.0:0"}) as launch:
        assert launch.settings.api_listen == "127.0.0.1:21401"


def test_a_root_that_is_gone(quiet):
    """A reaped process, a zombie, and a thread that is no process are all refused."""
    proc = Proc()
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert preflight.root_pid(child.pid, proc) == "that process has ended"
    child.wait()
    assert "no such process" in preflight.root_pid(child.pid, proc)
    assert preflight.root_pid(os.getpid(), proc) == ""
    up, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (up.set(), stop.wait()))
    thread.start()
    try:
        assert up.wait(10)
        assert "no such process" in preflight.root_pid(thread.native_id, proc)
    finally:
        stop.set()
        thread.join()
        proc.close()
    with pytest.raises(UsageError, match="--root-pid"):
        prepare({"root_pid": str(child.pid)}, Given(in_pod=False), quiet)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"two words", "without spaces"),
        (b"\xff\xfe", "ASCII"),
        (b"x" * 5000, "4096"),
    ],
)
def test_a_token_file_that_holds_no_token(tmp_path, content, words):
    path = tmp_path / "token"
    path.write_bytes(content)
    why = preflight.token_file(str(path))
    assert words in why
    assert not content.strip() or content.decode("latin1").strip() not in why


def test_a_token_file_that_is_right_or_is_no_file(tmp_path):
    (tmp_path / "token").write_text("s3cr3t\n")
    assert preflight.token_file(str(tmp_path / "token")) == ""
    assert "No such file" in preflight.token_file(str(tmp_path / "none"))
    assert "regular file" in preflight.token_file("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    assert "regular file" in preflight.token_file(str(tmp_path / "fifo"))


def test_a_dump_folder_is_tried_by_writing(tmp_path):
    assert preflight.dump_dir(str(tmp_path / "a" / "b")) == ""
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    assert "no folder" in preflight.dump_dir(str(tmp_path / "file"))
    assert "no folder" in preflight.dump_dir(str(tmp_path / "file" / "below"))
    assert "cannot be made or written" in preflight.dump_dir("/proc/self/none")


@pytest.mark.root
def test_a_volume_that_hangs_does_not_hang_us(tmp_path):
    """Writing to a frozen file system waits in the kernel, beyond any signal: the check gives up and says so."""
    if shutil.which("mkfs.ext4") is None or shutil.which("fsfreeze") is None:
        pytest.skip("no mkfs.ext4 or fsfreeze")
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(volume)], capture_output=True).returncode != 0:
        pytest.skip("no loop devices")
    try:
        assert preflight.dump_dir(str(volume)) == ""
        subprocess.run(["fsfreeze", "-f", str(volume)], check=True)
        try:
            assert preflight.dump_dir(str(volume), seconds=0.3) == "the volume does not answer within 0.3 s"
        finally:
            subprocess.run(["fsfreeze", "-u", str(volume)], check=True)
        os.wait()  # the child that was left behind: SIGKILL waited for it at the end of the freeze
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)


# ---- sockets


@contextmanager
def bound(text: str) -> Iterator[list[socket.socket]]:
    sockets = [socket.socket(fileno=fd) for fd in listening.bind(listening.parse(text))]
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("text", [":0", "localhost:0"])
def test_no_host_and_localhost_are_both_ip_versions_on_one_port(text):
    with bound(text) as sockets:
        (port,) = {sock.getsockname()[1] for sock in sockets}
        assert reaches("127.0.0.1", port)
        if has_ipv6():
            assert reaches("::1", port)
        assert all(sock.get_inheritable() for sock in sockets)


def test_one_address_is_that_address_alone():
    with bound("127.0.0.1:0") as (sock,):
        assert reaches("127.0.0.1", sock.getsockname()[1])
        assert not reaches("127.0.0.2", sock.getsockname()[1])


@pytest.mark.parametrize("text", [":{}", "127.0.0.1:{}", "localhost:{}"])
def test_a_port_that_somebody_listens_on_is_in_use(text):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match=f"port {port} is in use"):
            listening.bind(listening.parse(text.format(port)))
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_address_of_another_machine():
    with pytest.raises(OSError, match="no interface here"):
        listening.bind(listening.parse("192.0.2.1:0"))


IN_A_NAMESPACE = """
import os, socket
from sidecar import listening
sockets = [socket.socket(fileno=fd) for fd in listening.bind(listening.parse(":0"))]
socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1])).close()
print("reached")
"""


@pytest.mark.root
def test_no_host_on_a_machine_with_ipv6_switched_off():
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("no unshare or ip")
    script = 'ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && exec "$0" -c "$1"'
    result = subprocess.run(
        ["unshare", "-n", "sh", "-ec", script, sys.executable, IN_A_NAMESPACE], cwd=ROOT, capture_output=True, text=True
    )
    if "unshare failed" in result.stderr or "disable_ipv6" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert (result.stdout, result.stderr) == ("reached\n", "")


def test_the_supervisors_command_line_is_isolated():
    """The package comes from where this one is, and nothing of the environment's Python settings gets in."""
    argv = supervisor_argv(Launch(settings=run_module.Settings(), python="/py", package_root="/root"), 7)
    assert argv[:4] == ["/py", "-I", "-S", "-c"]
    assert argv[5:] == ["/root", "7"]
    assert "sidecar.supervisor.__main__" in argv[4]
    assert Path(ROOT, "sidecar", "__init__.py").exists()

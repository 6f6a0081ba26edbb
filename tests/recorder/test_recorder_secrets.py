"""Secrets in command lines, titles and environments are in no artifact."""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder_rig import ID, RANK, Ranks, Start, all_bytes, incident, rank_process

from sidecar.masking import is_secret_name, mask_arguments, mask_text
from sidecar.recorder.capture.environment import may_be_shown, shown

SECRETS = (
    "first-key-9f8e", "second-key-1a2b", "inline-key-77", "hf_QwErTyUiOpAsDfGh", "sk-proj-abcdef0123456789",
    "s3cr3t-pw", "url-password-5", "query-token-6", "json secret 8", "bearerValue0123456789", "header-value-10",
    "env-secret-11", "vllm-env-key-12", "nccl-secret-13", "shell-token-14", "title-key-15", "url-in-nccl-16",
)  # fmt: skip


def test_no_artifact_holds_a_secret_of_a_real_process(start: Start, ranks: Ranks) -> None:
    (k1, k2, inline, hf, sk, pw, url, query, as_json, bearer, header, env, vllm, nccl, shell, title, in_url) = SECRETS
    arguments = [
        "--api-key", k1, k2, "--tp-size", "8", f"--admin-api-key={inline}", "--model", f"x?{hf}", sk, "--password", pw,
        f"--db=postgres://me:{url}@db:5432/x", f"http://h/p?a=1&token={query}", "--conf",
        json.dumps({"secret": as_json}), f"Authorization: Bearer {bearer}", f"X-Api-Key: {header}",
        f"export HF_TOKEN={shell}; exec run --max-tokens 5",
    ]  # fmt: skip
    environment = {
        "PATH": os.environ["PATH"],
        "MY_SETTING": env,
        "VLLM_API_KEY": vllm,
        "NCCL_AUTH_TOKEN": nccl,
        "NCCL_DEBUG": "INFO",
        "NCCL_NET_CONFIG": f"https://me:{in_url}@net/x",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "RANK": "3",
    }
    identity = ranks.start(*arguments, env=environment, code=RANK)
    rig = start()
    what = incident()
    rig.begin(what, [rank_process(identity, "TP0", title=f"sglang::scheduler --api-key {title}")], frozen=False)
    rig.until("captures_done")
    rig.seal(what)
    for path, data in all_bytes(rig.dump_dir / ID):
        for secret in SECRETS:
            assert secret not in data.decode(), path
    state = json.loads(rig.text("process/TP0.json"))
    assert state["environ"] == {
        "NCCL_DEBUG": "INFO",
        "NCCL_NET_CONFIG": "https://***@net/x",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "RANK": "3",
    }
    assert state["cmdline"][3:8] == ["--api-key", "***", "***", "--tp-size", "8"]
    assert state["cmdline"][-1] == "export HF_TOKEN=***; exec run --max-tokens 5"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("--api-key abc --port 80", "--api-key *** --port 80"),
        ("--api-key a b c --port 80", "--api-key *** --port 80"),
        ("--api_key='a b' x", "--api_key='***' x"),
        ("--api-k abc", "--api-k ***"),
        ('{"password": "a b", "max_tokens": 5}', '{"password": "***", "max_tokens": 5}'),
        ("dbPassword=x&user=me", "dbPassword=***&user=me"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("--tokenizer a --max-tokens 5 --eos-token-id 7", "--tokenizer a --max-tokens 5 --eos-token-id 7"),
        ("--max-total-tokens=7 --tokenizer-mode=auto", "--max-total-tokens=7 --tokenizer-mode=auto"),
        ("--ssl-keyfile /a/key.pem", "--ssl-keyfile /a/key.pem"),
        ("token=a; token=b", "token=***; token=***"),
        ("a=b=token=c", "a=b=token=***"),
        ("curl -H 'Authorization: Bearer abcdefgh'", "curl -H 'Authorization: *** ***'"),
        ("GITHUB_PASS_CONFIG_TOKEN=x", "GITHUB_PASS_CONFIG_TOKEN=***"),
        ("sglang::scheduler_TP0", "sglang::scheduler_TP0"),
        ("VLLM::Worker_TP1", "VLLM::Worker_TP1"),
    ],
)
def test_masking_of_texts(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_masking_of_arguments_keeps_their_number() -> None:
    arguments = ["vllm", "serve", "--api-key", "a", "b", "--port", "80", "--hf-token", "c", "--seed", "-1"]
    assert mask_arguments(arguments) == [
        "vllm", "serve", "--api-key", "***", "***", "--port", "80", "--hf-token", "***", "--seed", "-1",
    ]  # fmt: skip


@given(
    st.lists(st.text()), st.from_regex(r"[A-Za-z0-9]{12}", fullmatch=True), st.sampled_from(["--api-key", "--hf_token"])
)
def test_the_value_of_a_secret_option_is_never_shown(around: list[str], secret: str, option: str) -> None:
    masked = mask_arguments([*around, option, secret, f"{option}={secret}", f"x {option} {secret}"])
    assert len(masked) == len(around) + 4
    assert not any(secret in argument for argument in masked[len(around) :])


@given(st.text())
def test_masking_never_fails(text: str) -> None:
    assert isinstance(mask_text(text), str)
    assert len(mask_arguments([text])) == 1


@pytest.mark.parametrize(
    "unit", ["a", "a-", "a=", "eyJ-", "eyJaaaaaaaaa-", "://", "--a ", " ", '"', "-", "bearer ", "sk-", "--a b ", "hf_"]
)
def test_a_hostile_command_line_costs_linear_time(unit: str) -> None:
    """64 KiB is what is read of a command line; quadratic time would be minutes."""
    began = time.process_time()
    mask_text((unit * 65536)[:65536])
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "VLLM_API_KEY", "SGLANG_API_KEY", "AWS_SECRET_ACCESS_KEY", "PATH", "HOME", "NCCL_AUTH_KEY",
     "nccl_debug", "PYTHONPATH", "LS_COLORS", "HTTP_PROXY", "KUBECONFIG", "NCCLX", "XNCCL_DEBUG", ""],
)  # fmt: skip
def test_what_is_not_listed_is_not_shown(name: str) -> None:
    assert not may_be_shown(name)


def test_the_allow_list_shows_what_explains_a_hang() -> None:
    environ = (
        b"NCCL_DEBUG=INFO\0NCCL_SOCKET_IFNAME=eth0\0TORCH_NCCL_TRACE_BUFFER_SIZE=2000\0WORLD_SIZE=8\0HF_TOKEN=x\0junk\0"
    )
    assert shown(environ) == {
        "NCCL_DEBUG": "INFO",
        "NCCL_SOCKET_IFNAME": "eth0",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "WORLD_SIZE": "8",
    }
    assert shown(b"RANK=\xff\0") == {"RANK": "\\xff"}


@pytest.mark.parametrize(
    "name", ["--api-key", "apiKey", "APIKey", "HF_TOKEN", "db.password", "private_key", "X-Auth-Token"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["--tokenizer", "max_tokens", "--num-token-ids", "author", "--keyring", "monkey", "passage"]
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)

"""Command lines and titles as they were seen on machines or are written in the projects' sources and manuals."""

from __future__ import annotations

from sidecar.model import Role

SPAWN = "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)"
TRACKER = "from multiprocessing.resource_tracker import main;main(4)"
FORKSERVER = "from multiprocessing.forkserver import main; main(5, 6, ['__main__'], **{'sys_path': ['/a']})"
NEW_FORKSERVER = f"import sys; sys.argv = ['vllm', 'serve', 'm']; {FORKSERVER}"

SGLANG_TITLES = [
    ("sglang::scheduler", Role.SCHEDULER, "scheduler"),
    ("sglang::scheduler_TP3", Role.SCHEDULER, "TP3"),
    ("sglang::scheduler_TP0_EP0", Role.SCHEDULER, "TP0_EP0"),
    ("sglang::scheduler_DP1_TP3", Role.SCHEDULER, "DP1_TP3"),
    ("sglang::scheduler_DP0_PP1_TP3", Role.SCHEDULER, "DP0_PP1_TP3"),
    ("sglang::scheduler_DP0_TP3_PP1", Role.SCHEDULER, "DP0_PP1_TP3"),  # an older order
    ("sglang::scheduler_PP1_ATTN_CP1_MOE_DP0_TP7_EP7", Role.SCHEDULER, "PP1_ATTN_CP1_MOE_DP0_TP7_EP7"),
    ("sglang::scheduler_TP007", Role.SCHEDULER, "TP7"),
    ("sglang::scheduler_TP1023", Role.SCHEDULER, "TP1023"),
    ("sgl_diffusion::scheduler", Role.SCHEDULER, "scheduler"),
    ("sgl_diffusion::scheduler_TP1", Role.SCHEDULER, "TP1"),
    ("sgl_diffusion::scheduler_U0", Role.SCHEDULER, "U0"),
    ("sglang::detokenizer", Role.DETOKENIZER, "detokenizer"),
    ("sglang::detokenizer_router", Role.DETOKENIZER, "detokenizer_router"),
    ("sglang::data_parallel_controller", Role.CONTROLLER, "controller"),
    ("sglang::http_server/tokenizer_manager", Role.SERVER, "server"),
]

VLLM_TITLES = [
    ("VLLM::EngineCore", Role.ENGINE_CORE, "engine_core"),
    ("VLLM::EngineCore_DP1", Role.ENGINE_CORE, "DP1"),
    ("VLLM::DPEngineCore_2", Role.ENGINE_CORE, "DP2"),
    ("VLLM::Worker", Role.WORKER, "worker"),
    ("VLLM::Worker_TP0", Role.WORKER, "TP0"),
    ("VLLM::Worker_PP1", Role.WORKER, "PP1"),
    ("VLLM::Worker_DP1_PP0_PCP1_TP3_DCP1_EP7", Role.WORKER, "DP1_PP0_PCP1_TP3_DCP1_EP7"),
    ("VLLM::Worker_EP0", Role.WORKER, "EP0"),
    ("VLLM::EngineCore_TP1", Role.WORKER, "TP1"),  # an older forked worker adds to its parent's title
    ("VLLM::DPEngineCore_1_PP0_TP1", Role.WORKER, "DP1_PP0_TP1"),
    ("VLLM::APIServer_0", Role.SERVER, "server_0"),
    ("VLLM::APIServer", Role.SERVER, "server"),
    ("VLLM::DPCoordinator", Role.CONTROLLER, "controller"),
    ("PD-L1_binder::EngineCore", Role.ENGINE_CORE, "engine_core"),  # VLLM_PROCESS_NAME_PREFIX
    ("PD-L1_binder::Worker_TP1", Role.WORKER, "TP1"),
    ("vLLM-Omni::Worker_FS1_TP0", Role.WORKER, "TP0_FS1"),
]

# Whole command lines, one argument a word.
SGLANG_SERVERS = [
    "python3 -m sglang.launch_server --model-path Qwen/Qwen3-8B --tp 8",
    "python -m sglang.launch_server",
    "/opt/venv/bin/python3.12 -u -X faulthandler -W ignore -m sglang.launch_server --port 30000",
    "/usr/bin/python3 -um sglang.launch_server --port 30000",
    "/usr/bin/python3 /sgl-workspace/sglang/python/sglang/launch_server.py --model-path m",
    "/usr/bin/python3 sglang/launch_server.py",
    "/usr/bin/python3 /usr/local/bin/sglang serve --model-path m",
    "/usr/local/bin/sglang serve m",
    "python -m sglang serve m",
    "python -m sglang.cli.main serve m",
    "python -m sglang.srt.server --model m",
    "python -m sglang_router.launch_server --dp-size 4 --tp-size 2",
    "python3 -m dynamo.sglang --model-path m --tp-size 2",
    "sglang::http_server/tokenizer_manager",
]

VLLM_SERVERS = [
    "/usr/bin/python3 /usr/local/bin/vllm serve google/gemma-3-27b-it --port 8004",
    "vllm serve m",
    "/opt/venv/bin/vllm serve m -tp 2",
    "/usr/bin/python3 /usr/local/bin/vllm --omni serve m",
    "python3 -m vllm.entrypoints.openai.api_server --model m --tensor-parallel-size 4",
    "python3 -O -E -s -m vllm.entrypoints.openai.api_server --model m",
    "python3 /app/vllm/entrypoints/openai/api_server.py --model m",
    "python3 -m vllm.entrypoints.cli.main serve m",
    "python3 -m vllm.entrypoints.api_server --model m",
    "python3 -m dynamo.vllm --model m",
    "pypy3.11 -m vllm.entrypoints.openai.api_server",
    "python3.13t -m vllm.entrypoints.openai.api_server",
]

TORCHRUN = [
    "torchrun --nproc-per-node=4 train.py",
    "/usr/bin/python3 /usr/local/bin/torchrun --standalone --nproc_per_node 4 -m serve",
    "python -m torch.distributed.run --nproc-per-node=4 serve.py -h",
    "python -m torch.distributed.launch serve.py",
]

# Each mentions an engine and none is one.
STRANGERS = [
    "vim /app/sglang/launch_server.py",
    "emacs -nw vllm/entrypoints/openai/api_server.py",
    "less vllm serve",
    "cat sglang/launch_server.py",
    "grep vllm serve",
    "grep -r sglang::scheduler /var/log",
    "vim VLLM::Worker_TP0",
    "tail -f VLLM::EngineCore",
    "pgrep -f sglang.launch_server",
    "pkill -9 -f VLLM::EngineCore",
    "tee /var/log/vllm serve",
    "timeout 5 vllm serve m",
    "nohup vllm serve m",
    "env A=b vllm serve m",
    "sudo -u user vllm serve m",
    "tini -- vllm serve m",
    "dumb-init python -m sglang.launch_server",
    "uv run vllm serve m",
    "uv run python -m sglang.launch_server",
    "numactl --cpunodebind=0 python -m sglang.launch_server --tp 8",
    "nsys profile python -m sglang.launch_server --tp 8",
    "kubectl exec pod -- python -m sglang.launch_server",
    "py-spy dump --pid 7",
    "py-spy record -- python -m vllm.entrypoints.openai.api_server",
    "gdb --args python -m sglang.launch_server",
    "python -m py_spy dump vllm serve",
    "python -m pytest tests/sglang/launch_server.py -k vllm serve",
    "python -m pip install vllm serve",
    "python /usr/bin/pytest vllm serve",
    "python tools/check.py sglang/launch_server.py",
    "python",
    "python -",
    "python -i",
    "python --version",
    "python -m",
    "vllm bench serve --model m",
    "vllm chat",
    "vllm complete --url http://x",
    "vllm run-batch -i serve",
    "vllm collect-env",
    "vllm serve --help",
    "vllm serve m --help=all",
    "vllm",
    "/usr/bin/python3 /usr/local/bin/vllm bench serve",
    "python -m vllm.benchmarks.serve serve",
    "sglang generate --model-path serve",
    "sglang version",
    "sglang render serve",
    "sglang",
    "python -m sglang.bench_serving --backend sglang",
    "python -m sglang.launch_server --help",
    "python3 -m sglang.check_env",
    "rankguard run --engine sglang",
    "rankguard run -- vllm serve m",
    "/usr/bin/python3 /usr/local/bin/rankguard run -- python -m sglang.launch_server",
    "myvllm serve m",
    "./notsglang/launch_server.py",
    "./notvllm/entrypoints/openai/api_server.py",
    "raylet --node-ip sglang::scheduler",
    "ray::Worker",
    "ray::RayWorkerWrapper.execute_method",
    "ray::IDLE",
    "nvidia-smi",
    "[kworker/0:1]",
]

# The same, where an argument has spaces.
STRANGERS_IN_ARGUMENTS = [
    ("bash", "-c", "source env; exec vllm serve m --tensor-parallel-size 8"),
    ("sh", "-c", "python3 -m sglang.launch_server --tp 8"),
    ("/bin/bash", "-lc", "vllm serve m"),
    ("python", "-c", "vllm", "serve"),
    ("python", "-c", "import os; print('sglang::scheduler_TP0')"),
    ("python", "-uc", "vllm serve"),
    ("python3", "-c", "sglang/launch_server.py"),
    ("watch", "ps aux | grep VLLM::Worker_TP0"),
    ("ssh", "host", "vllm serve m"),
    ("tmux", "new", "-d", "vllm serve m"),
    ("", "vllm", "serve"),
    (),
    ("",),
]

# Text around a title is no title.
NO_TITLES = [
    "sglang::scheduler ",
    " sglang::scheduler",
    "sglang::scheduler TP0",
    "sglang::schedulers",
    "sglang::scheduler_",
    "sglang::scheduler_TP",
    "sglang::scheduler_tp0",
    "sglang::scheduler_TP0_",
    "sglang::scheduler_TP-1",
    "sglang::scheduler_TP0\n",
    "sglang::scheduler_TP0;rm",
    "sglang::scheduler_TP٣",
    "Sglang::scheduler",
    "xsglang::scheduler",
    "sglang:scheduler_TP0",
    "sglang::schedule",
    "sglang::detokenizer_x y",
    "sglang::tokenizer_worker:77",  # a web worker, which its server starts again
    "sglang::Worker_TP0",
    "sglang::EngineCore",
    "VLLM::Workers",
    "VLLM::Worker_",
    "VLLM::Worker TP0",
    "VLLM::Worker_TP0 --x",
    "VLLM::worker",
    "VLLM::EngineCoreX",
    "VLLM::DPEngineCore",
    "VLLM::DPEngineCore_",
    "VLLM::APIServer_x",
    "VLLM::",
    "::Worker_TP0",
    "a/b::Worker_TP0",
    "a b::Worker_TP0",
    "std::Worker",
    "ray::Worker_TP0",
    "VLLM::EngineCore" + "_DP1" * 100,
    "python -m sglang.launch_server",
]

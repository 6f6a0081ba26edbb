"""Main threads as people reported them of real engines, the innermost frame first, and threads made of them.

The files and functions are those of the sources and of stacks in issues; the lines are examples.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sidecar.policy.stacks import Spot, spot_of

SITE = "/usr/local/lib/python3.12/dist-packages/"

SPAWN = """
_main (multiprocessing/spawn.py:135)
spawn_main (multiprocessing/spawn.py:122)
"""
VLLM_WORKER_LOOP = f"""
worker_busy_loop (vllm/v1/executor/multiproc_executor.py:987)
worker_main (vllm/v1/executor/multiproc_executor.py:733)
{SPAWN}
"""
VLLM_WORKER_IDLE = f"""
sched_yield (vllm/distributed/utils.py:48)
wait (vllm/distributed/device_communicators/shm_broadcast.py:196)
acquire_read (vllm/distributed/device_communicators/shm_broadcast.py:698)
dequeue (vllm/distributed/device_communicators/shm_broadcast.py:779)
{VLLM_WORKER_LOOP}
"""
VLLM_FORWARD = f"""
forward (vllm/model_executor/models/llama.py:310)
execute_model (vllm/v1/worker/gpu_model_runner.py:2002)
{VLLM_WORKER_LOOP}
"""
VLLM_ALL_REDUCE = f"""
all_reduce (torch/distributed/distributed_c10d.py:2810)
wrapper (torch/distributed/c10d_logger.py:81)
all_reduce (vllm/distributed/parallel_state.py:42)
{VLLM_FORWARD}
"""
VLLM_CORE_LOOP = f"""
run_busy_loop (vllm/v1/engine/core.py:863)
run_engine_core (vllm/v1/engine/core.py:836)
{SPAWN}
"""
VLLM_CORE_IDLE = f"""
wait (threading.py:355)
get (queue.py:171)
_process_input_queue (vllm/v1/engine/core.py:877)
{VLLM_CORE_LOOP}
"""
VLLM_CORE_STEP = f"""
poll (zmq/sugar/poll.py:106)
poll (zmq/sugar/socket.py:1062)
recv (vllm/distributed/device_communicators/shm_broadcast.py:802)
dequeue (vllm/distributed/device_communicators/shm_broadcast.py:794)
get_response (vllm/v1/executor/multiproc_executor.py:387)
_wait_for_response (vllm/v1/executor/multiproc_executor.py:95)
result (vllm/v1/executor/multiproc_executor.py:90)
step_with_batch_queue (vllm/v1/engine/core.py:590)
_process_engine_step (vllm/v1/engine/core.py:892)
{VLLM_CORE_LOOP}
"""
VLLM_CORE_ADD = f"""
preprocess_add_request (vllm/v1/engine/core.py:640)
_process_input_queue (vllm/v1/engine/core.py:890)
{VLLM_CORE_LOOP}
"""
SGLANG_LOOP = f"""
event_loop_overlap (sglang/srt/managers/scheduler.py:1003)
decorate_context (torch/utils/_contextlib.py:120)
run_scheduler_process (sglang/srt/managers/scheduler.py:2769)
{SPAWN}
"""
SGLANG_IDLE = f"""
broadcast (torch/distributed/distributed_c10d.py:2730)
wrapper (torch/distributed/c10d_logger.py:81)
broadcast_pyobj (sglang/srt/utils/common.py:1234)
recv_requests (sglang/srt/managers/scheduler.py:1120)
{SGLANG_LOOP}
"""
SGLANG_IDLE_LATER = f"""
broadcast (torch/distributed/distributed_c10d.py:2730)
broadcast_pyobj (sglang/srt/utils/common.py:1236)
_broadcast_reqs_across_ranks (sglang/srt/managers/scheduler_components/request_receiver.py:170)
recv_requests (sglang/srt/managers/scheduler_components/request_receiver.py:80)
{SGLANG_LOOP}
"""
SGLANG_SLEEPS = f"""
poll (zmq/sugar/poll.py:106)
maybe_sleep (sglang/srt/managers/scheduler_components/idle_sleeper.py:33)
{SGLANG_LOOP}
"""
SGLANG_SYNC = f"""
synchronize (torch/cuda/streams.py:231)
process_batch_result_decode (sglang/srt/managers/scheduler_output_processor_mixin.py:300)
{SGLANG_LOOP}
"""
SGLANG_FORWARD = f"""
forward (sglang/srt/models/qwen2.py:223)
forward_batch_generation (sglang/srt/managers/tp_worker.py:230)
run_batch (sglang/srt/managers/scheduler.py:1930)
{SGLANG_LOOP}
"""
SGLANG_JIT = f"""
_try_wait (subprocess.py:2011)
wait (subprocess.py:1264)
run (subprocess.py:550)
run_ninja (flashinfer/jit/cpp_ext.py:168)
build (flashinfer/jit/core.py:109)
build_and_load (flashinfer/jit/core.py:140)
{SGLANG_FORWARD}
"""
SGLANG_JIT_LOCK = f"""
acquire (filelock/_api.py:344)
__enter__ (filelock/_api.py:376)
load_cuda_ops (flashinfer/jit/core.py:122)
{SGLANG_FORWARD}
"""
TRITON_COMPILES = f"""
make_llir (triton/backends/nvidia/compiler.py:300)
compile (triton/compiler/compiler.py:320)
_do_compile (triton/runtime/jit.py:700)
run (triton/runtime/jit.py:560)
{VLLM_FORWARD}
"""
TRITON_LOADS = f"""
_init_handles (triton/compiler/compiler.py:473)
launch_metadata (triton/compiler/compiler.py:490)
run (triton/runtime/jit.py:756)
{VLLM_FORWARD}
"""
COMPILED_RUNS = f"""
run (torch/_inductor/utils.py:2500)
__call__ (torch/_inductor/output_code.py:600)
_fn (torch/_dynamo/eval_frame.py:840)
{VLLM_FORWARD}
"""


def stack(text: str, **more: Any) -> dict[str, Any]:
    """A thread as py-spy tells it, of lines like `function (file:line)`."""
    frames = []
    for entry in filter(None, text.splitlines()):
        name, _, where = entry.partition(" (")
        file, _, line = where.rstrip(")").rpartition(":")
        frames.append(
            {"name": name, "filename": SITE + file, "short_filename": None, "module": None, "line": int(line)}
        )
    return {"pid": 7, "thread_id": 1, "thread_name": "MainThread", "os_thread_id": 7, "active": True,
            "owns_gil": False, "frames": frames, **more}  # fmt: skip


@cache
def at(text: str, engine: str = "vllm") -> Spot:
    spot = spot_of([stack(text)], 7, engine)
    assert spot is not None
    return spot

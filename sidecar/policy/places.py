"""Known places in the Python code of engines and of what they are built on, by function and file. Pure tables.

A row is (functions, file): `file` is the end of a path, or a folder anywhere in it where it ends in "/"; `functions`
is None for every function of the file. Each table says where it is from; names were read in the projects' sources and
in the stacks that people put into their issues. A place that is not here counts as running: a wrong "waits" could
have a healthy engine killed, a missing one only costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Row = tuple[frozenset[str] | None, str]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GROUP_CALLS = _names(
    "all_reduce _all_reduce_out_place _all_reduce_in_place outplace_all_reduce inplace_all_reduce"
    " all_gather _all_gather_out_place all_gatherv all_gather_into_tensor _all_gather_into_tensor all_gather_object"
    " reduce_scatter reduce_scatterv reduce_scatter_tensor _reduce_scatter_tensor gather scatter"
    " broadcast broadcast_object broadcast_object_list broadcast_tensor_dict barrier send recv send_object recv_object"
    " send_tensor_dict recv_tensor_dict"
)

# Waits for other ranks.
_COLLECTIVE: tuple[Row, ...] = (
    # PyTorch: every function of this file is a collective or sets up a group.
    (None, "torch/distributed/distributed_c10d.py"),
    (_names("wait_tensor"), "torch/distributed/_functional_collectives.py"),
    # SGLang and vLLM: GroupCoordinator, in files of the same name.
    (_GROUP_CALLS, "distributed/parallel_state.py"),
    (None, "device_communicators/pynccl.py"),
    (None, "device_communicators/custom_all_reduce.py"),
    (None, "device_communicators/cuda_communicator.py"),
    # vLLM and SGLang: the queue in shared memory between an engine core and its workers.
    (_names("dequeue enqueue acquire_read acquire_write broadcast_object recv wait wait_until_ready"),
     "shm_broadcast.py"),
    # vLLM: an engine core waits for its workers' answers. The executor for one process does the work in this call.
    (_names("collective_rpc get_response _wait_for_response result"), "v1/executor/multiproc_executor.py"),
    # SGLang: requests go from rank 0 to the others (utils.py, later utils/common.py).
    (_names("broadcast_pyobj point_to_point_pyobj"), "srt/utils.py"),
    (_names("broadcast_pyobj point_to_point_pyobj"), "utils/common.py"),
)  # fmt: skip

# Waits for something else. Only functions that do nothing but wait.
_WAIT: tuple[Row, ...] = (
    # CPython's standard library.
    (_names("wait join acquire __enter__ _wait_for_tstate_lock _acquire_restore"), "/threading.py"),
    (_names("get put join"), "/queue.py"),
    (_names("get put"), "multiprocessing/queues.py"),
    (_names("acquire wait __enter__"), "multiprocessing/synchronize.py"),
    (_names("wait poll _poll recv recv_bytes _recv _recv_bytes"), "multiprocessing/connection.py"),
    (_names("wait poll"), "multiprocessing/popen_fork.py"),
    (_names("select"), "/selectors.py"),
    (_names("wait _wait communicate _communicate _try_wait"), "/subprocess.py"),
    (_names("result exception wait as_completed"), "concurrent/futures/_base.py"),
    (_names("readinto accept"), "/socket.py"),
    # pyzmq.
    (_names("poll"), "zmq/sugar/poll.py"),
    (_names("poll recv recv_multipart recv_pyobj recv_string"), "zmq/sugar/socket.py"),
    # PyTorch: Event.synchronize and Stream.synchronize, torch.cuda.synchronize.
    (_names("synchronize"), "torch/cuda/streams.py"),
    (_names("synchronize"), "torch/cuda/__init__.py"),
    (_names("synchronize"), "torch/accelerator/__init__.py"),
    # filelock, which the JIT caches of engines use (seen: flashinfer waits for a lock that nobody gives back).
    (_names("acquire __enter__"), "filelock/_api.py"),
    # vLLM's spin waits; SGLang's sleep between requests.
    (_names("sched_yield"), "distributed/utils.py"),
    (_names("maybe_sleep"), "idle_sleeper.py"),
)

# Compilers that run inside of a rank. Beware of files whose functions also stand on the stack of every compiled
# model that just runs: torch/_dynamo/eval_frame.py, triton/runtime/jit.py, the caches of compiled code.
_COMPILE: tuple[Row, ...] = (
    # Triton. compiler.py also loads finished kernels (_init_handles), in which a rank can hang.
    (_names("compile make_ir parse ast_to_ttir"), "triton/compiler/compiler.py"),
    (None, "triton/compiler/code_generator.py"),
    (None, "triton/runtime/build.py"),
    (_names("_do_compile"), "triton/runtime/jit.py"),
    (_names("_bench do_bench"), "triton/runtime/autotuner.py"),
    (_names("make_ttir make_ttgir make_llir make_ptx make_cubin make_amdgcn make_hsaco"), "triton/backends/"),
    # torch.compile.
    (None, "torch/_dynamo/convert_frame.py"),
    (None, "torch/_dynamo/symbolic_convert.py"),
    (None, "torch/_dynamo/output_graph.py"),
    (None, "torch/_inductor/graph.py"),
    (None, "torch/_inductor/scheduler.py"),
    (None, "torch/_inductor/codegen/"),
    (None, "torch/_inductor/async_compile.py"),
    (_names("compile_fx compile_fx_inner _compile_fx_inner fx_codegen_and_compile codegen_and_compile"),
     "torch/_inductor/compile_fx.py"),
    (_names("precompile _precompile_worker _precompile_config autotune_to_one_config benchmark_all_configs bench"
            " coordinate_descent_tuning"), "torch/_inductor/runtime/triton_heuristics.py"),
    # C++ extensions; what flashinfer, DeepGEMM, TileLang, TVM, CUTLASS, numba and CuPy compile when first needed.
    (_names("load load_inline _jit_compile _write_ninja_file_and_build_library _run_ninja_build"),
     "torch/utils/cpp_extension.py"),
    (_names("build build_and_load run_ninja load_cuda_ops"), "flashinfer/jit/"),
    (_names("build compile nvcc_compile compile_wrapper"), "deep_gemm/jit/"),
    (None, "layers/deep_gemm_wrapper/compile_utils.py"),
    (_names("compile _compile cached lower par_compile"), "tilelang/"),
    (_names("build compile_cuda build_inline"), "/tvm/"),
    (_names("build build_inline load_inline"), "tvm_ffi/cpp/"),
    (_names("compile _compile compile_and_cache generate_mlir generate_original_ir"), "cutlass/base_dsl/"),
    (None, "numba/core/compiler.py"),
    (_names("compile compile_using_nvrtc compile_using_nvcc compile_with_cache"), "cupy/cuda/compiler.py"),
)  # fmt: skip

# Reads weights or finished kernels from a disk or a network, with next to no CPU time. Source: SGLang's weight updates,
# vLLM's and SGLang's loaders and LoRA managers, the hub's downloads, FlashInfer's kernels on their first use.
_LOAD: tuple[Row, ...] = (
    (None, "model_executor/model_loader/"),
    (None, "srt/model_loader/"),
    (
        _names(
            "load_weights load_model reload_weights update_weights_from_disk init_weights_update_group"
            " add_adapter add_lora load_lora_adapter"
        ),
        "/",
    ),
    (None, "huggingface_hub/file_download.py"),
    (None, "flashinfer/jit/cubin_loader.py"),
)
# vLLM: EngineCoreProc._process_engine_step, which runs the model itself where there is one process alone.
_STEP: Mapping[str, tuple[Row, ...]] = {"vllm": ((_names("_process_engine_step"), "v1/engine/core.py"),)}

# The engine's own loop asks for requests here, with nothing under way.
_IDLE_LOOP: Mapping[str, tuple[Row, ...]] = {
    # SGLang: Scheduler.recv_requests, since moved to SchedulerRequestReceiver; IdleSleeper with --sleep-on-idle.
    "sglang": (
        (_names("recv_requests"), "managers/scheduler.py"),
        (_names("recv_requests"), "scheduler_components/request_receiver.py"),
        (_names("maybe_sleep"), "idle_sleeper.py"),
        (_names("maybe_sleep"), "managers/scheduler.py"),
    ),
    # vLLM: EngineCoreProc._process_input_queue gets from a queue while the engine has no work.
    "vllm": ((_names("_process_input_queue process_input_queue"), "v1/engine/core.py"),),
}

# A loop that is idle only where it stands directly in the queue that brings its work.
_WORK_LOOP: Mapping[str, tuple[Row, ...]] = {
    "vllm": ((_names("worker_busy_loop"), "v1/executor/multiproc_executor.py"),),
}
_REQUEST_QUEUE: Mapping[str, tuple[Row, ...]] = {
    "vllm": ((_names("dequeue acquire_read"), "shm_broadcast.py"),),
}


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows by the last part of their file, since stacks of a thousand ranks are looked up here frame by frame."""

    files: Mapping[str, tuple[Row, ...]]
    folders: tuple[Row, ...]

    @classmethod
    def of(cls, *tables: tuple[Row, ...]) -> _Table:
        files: dict[str, tuple[Row, ...]] = {}
        folders: list[Row] = []
        for functions, file in (row for table in tables for row in table):
            if file.endswith("/"):
                folders.append((functions, f"/{file.lstrip('/')}"))
            else:
                name = file.rpartition("/")[2]
                files[name] = (*files.get(name, ()), (functions, f"/{file.lstrip('/')}"))
        return cls(files, tuple(folders))

    def functions_in(self, path: str) -> list[frozenset[str] | None]:
        """The functions of each row that is about this file."""
        rooted = f"/{path}"
        rows = self.files.get(path.rpartition("/")[2], ())
        found = [functions for functions, file in rows if rooted.endswith(file)]
        return found + [functions for functions, folder in self.folders if folder in rooted]

    def has(self, function: str, path: str) -> bool:
        return any(names is None or function in names for names in self.functions_in(path))


_COLLECTIVES = _Table.of(_COLLECTIVE)
_WAITS = _Table.of(_WAIT)
_COMPILERS = _Table.of(_COMPILE, _LOAD)
_NONE = _Table.of()
_STEPS, _IDLE_LOOPS, _WORK_LOOPS, _REQUEST_QUEUES = (
    {engine: _Table.of(rows) for engine, rows in tables.items()}
    for tables in (_STEP, _IDLE_LOOP, _WORK_LOOP, _REQUEST_QUEUE)
)


def is_collective(function: str, path: str) -> bool:
    return _COLLECTIVES.has(function, path)


def waits(function: str, path: str) -> bool:
    return _WAITS.has(function, path)


# What a place is known for, as bits of one number.
COLLECTIVE, WAIT, COMPILE, STEP, IDLE_LOOP, WORK_LOOP, REQUEST_QUEUE = (1 << bit for bit in range(7))


class Uses:
    """What the places in one engine's stacks are known for. A file is looked up once: ranks run the same ones."""

    def __init__(self, engine: str) -> None:
        self._tables = (
            (COLLECTIVE, _COLLECTIVES),
            (WAIT, _WAITS),
            (COMPILE, _COMPILERS),  # it compiles here, or loads: either takes long and shows no token
            (STEP, _STEPS.get(engine, _NONE)),  # the engine's own loop is in the middle of a step
            (IDLE_LOOP, _IDLE_LOOPS.get(engine, _NONE)),
            (WORK_LOOP, _WORK_LOOPS.get(engine, _NONE)),
            (REQUEST_QUEUE, _REQUEST_QUEUES.get(engine, _NONE)),
        )
        self._files: dict[str, tuple[tuple[int, frozenset[str] | None], ...]] = {}

    def of(self, function: str, path: str) -> int:
        """0 for a place that is not known."""
        rows = self._files.get(path)
        if rows is None:
            rows = self._files[path] = tuple(
                (use, functions) for use, table in self._tables for functions in table.functions_in(path)
            )
        found = 0
        for use, functions in rows:
            if functions is None or function in functions:
                found |= use
        return found

"""Stuck or busy: series as engines give them, seen as the monitor sees them."""

from __future__ import annotations

from dataclasses import replace

import policy_stacks as stacks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_series import Rank, World

from sidecar.model import Liveness, Reason
from sidecar.policy.progress import Limits, judge, keep_from
from sidecar.policy.sightings import Answer, Compiler, Gpu, Look, ProbeResult, RankLook, Scrape
from sidecar.policy.stacks import Kind, Spot

DEFAULTS = Limits()
GENERATES = Limits(health_runs=True)  # SGLang's health check
PROMISE = DEFAULTS.stall_timeout + 10  # from the moment in which it happens until it is found
LOCK = "waits_for_ever (app/hooks.py:12)" + stacks.VLLM_FORWARD
SG_LOCK = "waits_for_ever (app/hooks.py:12)" + stacks.SGLANG_FORWARD
SG_ALL_REDUCE = "all_reduce (sglang/srt/distributed/parallel_state.py:510)" + stacks.SGLANG_FORWARD


def core(stack: str, share: float = 0.0) -> Rank:
    return Rank("engine_core", stack, share, role="engine_core")


def workers(*ranks: str, share: float = 0.0) -> list[Rank]:
    return [Rank(f"TP{n}", stack, share) for n, stack in enumerate(ranks)]


def schedulers(*ranks: str, share: float = 0.0) -> list[Rank]:
    return [Rank(f"TP{n}", stack, share, role="scheduler") for n, stack in enumerate(ranks)]


def vllm_idle(_at: float) -> list[Rank]:
    return [core(stacks.VLLM_CORE_IDLE), *workers(*[stacks.VLLM_WORKER_IDLE] * 2)]


def vllm_spins(_at: float) -> list[Rank]:
    sync = "synchronize (torch/cuda/streams.py:231)" + stacks.VLLM_FORWARD
    return [core(stacks.VLLM_CORE_STEP), *workers(*[sync] * 2, share=1.0)]


def vllm_serves(at: float) -> list[Rank]:
    line = int(at * 7) % 90 + 300
    forward = stacks.VLLM_FORWARD.replace(":310", f":{line}")
    return [core(stacks.VLLM_CORE_STEP, 0.3), *workers(forward, forward, share=0.8)]


def vllm_odd(_at: float) -> list[Rank]:
    return [core(stacks.VLLM_CORE_STEP), *workers(stacks.VLLM_ALL_REDUCE, LOCK)]


def sglang_spins(_at: float) -> list[Rank]:
    return schedulers(*[stacks.SGLANG_SYNC] * 4, share=1.0)


def sglang_idle(at: float) -> list[Rank]:
    """TP0 goes round its loop, the others wait for it in a broadcast."""
    round_ = stacks.SGLANG_LOOP.replace(":1003", f":{990 + int(at * 3) % 20}")
    return [Rank("TP0", round_, 1.0, "scheduler"), *schedulers("", *[stacks.SGLANG_IDLE] * 3)[1:]]


def frozen_at(moment: float, before: float = 100.0):
    """A counter that rises by 50 a second and stands still from a moment on."""
    return lambda at: before + 50 * min(at, moment)


def from_then(moment: float, then, before):
    return lambda at: then(at) if at >= moment else before(at)


def always(value):
    return lambda at: value


def test_an_engine_that_serves_is_busy_and_nobody_looks_closer():
    world = World(vllm_serves, queue=always((4.0, 1.0)), tokens=lambda at: at * 50).watch(600)
    assert world.verdicts == {Liveness.BUSY}
    assert not world.close_looks


@pytest.mark.parametrize(("engine", "ranks"), [("vllm", vllm_idle), ("sglang", sglang_idle)])
def test_an_idle_engine_is_idle_wherever_its_ranks_stand(engine, ranks):
    world = World(ranks, engine, queue=always((0.0, 0.0)), tokens=always(12345.0)).watch(3600)
    assert world.verdicts == {Liveness.IDLE}
    assert len(world.close_looks) <= 3600 / DEFAULTS.stall_limit + 1


def test_nothing_known_of_an_engine_is_no_failure():
    world = World(lambda at: schedulers(SG_ALL_REDUCE, SG_LOCK), "generic", health=always(Answer.UNKNOWN)).watch(3600)
    assert world.verdicts == {Liveness.IDLE}
    assert world.last.verdict.because == ("nothing says that it has work",)


def test_loading_weights_takes_as_long_as_it_takes():
    """Nothing before the first answer is a failure, and nobody looks at ranks that load."""
    world = World(vllm_odd, health=always(Answer.REFUSED), up=None).watch(3600)
    assert world.verdicts == {Liveness.BUSY}
    assert not world.close_looks


@pytest.mark.parametrize("health", [Answer.UNHEALTHY, Answer.TIMEOUT, Answer.OK])
@pytest.mark.parametrize(("engine", "ranks"), [("vllm", vllm_spins), ("sglang", sglang_spins)])
def test_a_prefill_of_four_minutes_is_busy(engine, ranks, health):
    """No token comes, all ranks spin in one place, and the health check of SGLang fails: as a hang on a GPU looks."""

    def long(at: float) -> bool:
        return 3.0 <= at < 243.0

    world = World(
        ranks, engine, queue=always((1.0, 2.0)), tokens=lambda at: 100 + 50 * (min(at, 3.0) + max(0.0, at - 243.0)),
        health=lambda at: health if long(at) else Answer.OK,
    ).watch(290, GENERATES if engine == "sglang" else DEFAULTS)  # fmt: skip
    assert world.verdicts == {Liveness.BUSY}
    asked = engine == "sglang" and health is Answer.OK  # the ranks answered the health check
    assert len(world.close_looks) > 10 or asked


@pytest.mark.parametrize(("engine", "ranks"), [("vllm", vllm_spins), ("sglang", sglang_spins)])
@pytest.mark.parametrize("health", [Answer.UNHEALTHY, Answer.OK])
def test_all_ranks_spinning_in_one_place_are_stuck_at_the_limit(engine, ranks, health):
    world = World(ranks, engine, queue=always((1.0, 0.0)), tokens=frozen_at(3.0), health=always(health)).watch(1000)
    assert world.between(0, 300) == {Liveness.BUSY}
    assert world.last.reason is Reason.ENGINE_STALLED
    assert world.failed_at is not None
    assert 300 <= world.failed_at <= 310


def test_ranks_that_answer_a_health_check_go_on_whatever_the_numbers_say():
    world = World(sglang_spins, "sglang", queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(1000, GENERATES)
    assert world.verdicts == {Liveness.BUSY}


def test_an_answer_of_one_replica_says_nothing_of_another():
    """SGLang with two, seen: 200 for ever after the schedulers of one crashed in the forward pass."""
    ranks = [Rank(f"DP0_TP{n}", stacks.SGLANG_IDLE, role="scheduler") for n in (0, 1)]
    ranks += [Rank("DP1_TP0", SG_ALL_REDUCE, role="scheduler"), Rank("DP1_TP1", SG_LOCK, role="scheduler")]
    world = World(always(ranks), "sglang", queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(1000, GENERATES)
    assert world.last.verdict.odd == ("DP1_TP1",)


def test_a_compile_of_seventy_seconds_is_compiling():
    """Rank 0 starts nvcc and waits for it at rest, the others wait for rank 0; afterwards tokens come again."""

    def build(at: float) -> bool:
        return 5.0 <= at < 75.0

    world = World(
        lambda at: schedulers(stacks.SGLANG_JIT, *[SG_ALL_REDUCE] * 3),
        "sglang", queue=always((2.0, 0.0)), tokens=lambda at: 50 * (min(at, 5.0) + max(0.0, at - 75.0)),
        health=lambda at: Answer.UNHEALTHY if build(at) else Answer.OK,
        compilers=lambda at: (Compiler(900 + int(at / 12), "ptxas", at % 12),) if build(at) else (),
    ).watch(200, GENERATES)  # fmt: skip
    assert world.failed_at is None
    assert world.between(20, 75) == {Liveness.COMPILING}


def test_a_rank_that_compiles_by_itself_is_compiling():
    ranks = [core(stacks.VLLM_CORE_STEP), Rank("TP0", stacks.TRITON_COMPILES, 1.0), Rank("TP1", stacks.VLLM_ALL_REDUCE)]
    world = World(always(ranks), queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(400)
    assert world.failed_at is None
    assert world.between(20, 400) == {Liveness.COMPILING}


def test_a_rank_that_waits_for_a_build_of_another_process_is_not_killed_for_it():
    """torch.compile's helpers are ordinary Python processes: no compiler is seen, and the rank itself is at rest."""
    world = World(lambda at: schedulers(*[stacks.SGLANG_JIT_LOCK] * 4), "sglang",
                  queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(1000)  # fmt: skip
    assert world.failed_at is not None
    assert world.failed_at >= 300


@pytest.mark.parametrize("moment", [0.5, 3.0, 7.0, 9.9, 41.0, 1000.3])
def test_a_rank_stopped_under_load_is_found_with_health_saying_all_is_well(moment):
    """vLLM, seen: 200 for 300 s."""
    stop = always(
        [core(stacks.VLLM_CORE_STEP), *workers(stacks.VLLM_ALL_REDUCE), Rank("TP1", stacks.VLLM_FORWARD, state="T")]
    )
    world = World(from_then(moment, stop, vllm_serves), queue=always((3.0, 2.0)), tokens=frozen_at(moment)).watch(2000)
    assert world.last.reason is Reason.ENGINE_STALLED
    assert world.last.verdict.odd == ("TP1",)
    assert world.last.verdict.because == ("3 requests run and 2 wait, no token in 30 s", "TP1 is stopped (state T)")
    assert world.failed_at is not None
    assert moment + 25 < world.failed_at <= moment + PROMISE


@pytest.mark.parametrize("moment", [0.5, 3.0, 9.9, 1000.3])
def test_a_rank_stopped_while_idle_is_found_when_a_health_check_asks_the_ranks(moment):
    """SGLang: its numbers stay at 0, since they come from the loop that stands."""
    stop = always(
        [*schedulers(*[stacks.SGLANG_IDLE] * 3), Rank("TP3", stacks.SGLANG_IDLE, role="scheduler", state="T")]
    )
    world = World(from_then(moment, stop, sglang_idle), "sglang", queue=always((0.0, 0.0)), tokens=always(5.0),
                  health=lambda at: Answer.TIMEOUT if at >= moment else Answer.OK).watch(2000, GENERATES)  # fmt: skip
    assert world.last.verdict.odd == ("TP3",)
    assert world.failed_at is not None
    assert world.failed_at <= moment + PROMISE


def test_a_rank_stopped_in_an_idle_engine_is_no_failure_until_a_request_comes():
    """vLLM's numbers stay at 0 when the first request hangs; its core stands in the middle of a step."""

    def stop(at: float) -> list[Rank]:
        return [
            core(stacks.VLLM_CORE_IDLE if at < 200 else stacks.VLLM_CORE_STEP),
            *workers(stacks.VLLM_WORKER_IDLE),
            Rank("TP1", stacks.VLLM_WORKER_IDLE, state="T"),
        ]

    world = World(stop, queue=always((0.0, 0.0)), tokens=always(5.0)).watch(2000)
    assert world.between(0, 200) == {Liveness.IDLE}
    assert world.last.verdict.odd == ("TP1",)
    assert world.failed_at is not None
    assert world.failed_at <= 200 + PROMISE


def test_a_first_request_that_hangs_is_found_although_the_numbers_say_nothing():
    world = World(from_then(100.0, vllm_odd, vllm_idle), queue=always((0.0, 0.0)), tokens=always(5.0)).watch(2000)
    assert world.last.verdict.odd == ("TP1",)
    assert world.failed_at is not None
    assert world.failed_at <= 100 + DEFAULTS.stall_limit + PROMISE


@pytest.mark.parametrize("moment", [0.5, 3.0, 9.9, 41.0, 1000.3])
@pytest.mark.parametrize("period", [10.0, 5.0, 1.0])
def test_a_rank_that_does_not_enter_the_collective_is_found_and_named(moment, period):
    world = World(from_then(moment, vllm_odd, vllm_serves), queue=always((1.0, 0.0)), tokens=frozen_at(moment)).watch(
        2000, Limits(probe_period=period)
    )
    verdict = world.last.verdict
    assert (verdict.liveness, verdict.odd) == (Liveness.STUCK, ("TP1",))
    assert "TP0 is in all_reduce (parallel_state.py:42); TP1 is in waits_for_ever (hooks.py:12)" in verdict.because[1]
    assert world.failed_at is not None
    assert world.failed_at <= moment + DEFAULTS.stall_timeout + period


def test_on_a_gpu_the_others_spin_while_one_stands_elsewhere():
    ranks = always([*schedulers(*[stacks.SGLANG_SYNC] * 3, share=1.0), Rank("TP3", SG_LOCK, 0.0, "scheduler")])
    world = World(ranks, "sglang", queue=always((1.0, 0.0)), tokens=frozen_at(2.0), gpus=always((Gpu(0, 1.0, 0.3),)),
                  health=always(Answer.UNHEALTHY)).watch(1000)  # fmt: skip
    assert world.last.verdict.odd == ("TP3",)
    assert world.failed_at is not None
    assert world.failed_at <= PROMISE


def test_a_gpu_that_computes_speaks_for_them_until_the_limit():
    """A driver that waits for its kernel without spinning leaves all ranks at rest while the kernel runs."""
    still = always([core(stacks.VLLM_CORE_STEP), *workers(*[stacks.VLLM_ALL_REDUCE] * 2)])
    world = World(still, queue=always((1.0, 0.0)), tokens=frozen_at(0.0), gpus=always((Gpu(0, 1.0, 0.9),))).watch(1000)
    assert world.failed_at is not None
    assert world.failed_at >= DEFAULTS.stall_limit
    world = World(still, queue=always((1.0, 0.0)), tokens=frozen_at(0.0), gpus=always((Gpu(0, 1.0, 0.3),))).watch(1000)
    assert world.failed_at is not None
    assert world.failed_at <= PROMISE


def test_one_that_computes_long_while_the_others_wait_for_it_is_busy():
    """TP0 compiles a grammar in C, burning a core; the others wait in the next broadcast."""
    ranks = always([Rank("TP0", stacks.SGLANG_FORWARD, 1.0, "scheduler"), *schedulers("", *[SG_ALL_REDUCE] * 3)[1:]])
    world = World(ranks, "sglang", queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.verdicts == {Liveness.BUSY}


@pytest.mark.parametrize("common", [stacks.VLLM_ALL_REDUCE, stacks.VLLM_WORKER_IDLE])
def test_one_whose_gpu_works_long_while_the_others_wait_for_it_is_busy(common):
    """Whoever waits for its own device burns a core, and may have the long kernel."""
    sync = "synchronize (torch/cuda/streams.py:231)" + stacks.VLLM_FORWARD
    ranks = always([core(stacks.VLLM_CORE_STEP), Rank("TP0", sync, 1.0), *workers("", common)[1:]])
    world = World(ranks, queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.verdicts == {Liveness.BUSY}


@pytest.mark.parametrize("apart", ["PP", "DP"])
def test_stages_of_a_pipeline_and_replicas_stand_in_different_places(apart):
    """One stage waits for the other, whose ranks spin in a collective of a long prefill."""
    elsewhere = stacks.VLLM_ALL_REDUCE.replace("llama.py:310", "llama.py:400")
    ranks = [Rank(f"{apart}0_TP{n}", stacks.VLLM_ALL_REDUCE) for n in (0, 1)]
    ranks += [Rank(f"{apart}1_TP{n}", elsewhere, 1.0) for n in (0, 1)]
    world = World(always(ranks), queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.verdicts == {Liveness.BUSY}


def test_with_data_parallel_attention_all_ranks_are_peers():
    """Each has a number of its own among the tensor parallel ranks, and all of them step together."""
    ranks = [Rank(f"DP{n}_TP{n}", SG_ALL_REDUCE, role="scheduler") for n in range(3)]
    ranks.append(Rank("DP3_TP3", SG_LOCK, role="scheduler"))
    world = World(always(ranks), "sglang", queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.last.verdict.odd == ("DP3_TP3",)


def test_all_at_rest_with_work_waiting_is_stuck():
    """A deadlock between an engine core and its workers: each waits for the other."""
    ranks = always([core(stacks.VLLM_CORE_STEP), *workers(*[stacks.VLLM_WORKER_IDLE] * 2)])
    world = World(ranks, queue=always((1.0, 0.0)), tokens=frozen_at(4.0)).watch(1000)
    assert world.last.reason is Reason.ENGINE_STALLED
    assert world.failed_at is not None
    assert world.failed_at <= 4 + PROMISE
    assert any("all ranks have been at rest" in words for words in world.last.verdict.because)


def test_a_loop_that_polls_and_sleeps_is_not_at_rest():
    ranks = always([replace(core(stacks.VLLM_CORE_STEP), switches=900.0), *workers(*[stacks.VLLM_WORKER_IDLE] * 2)])
    world = World(ranks, queue=always((0.0, 3.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.verdicts == {Liveness.BUSY}


@pytest.mark.parametrize("offset", [0.0, 2.5, 5.0, 9.9])
def test_gauges_that_are_30_s_old_kill_no_idle_engine(offset):
    """SGLang shows its last batch until it was idle for 30 s; with --sleep-on-idle all its ranks are at rest then."""
    ranks = always(schedulers(stacks.SGLANG_SLEEPS, *[stacks.SGLANG_IDLE] * 3))
    end = 1 + offset
    for health_runs in (False, True):
        world = World(ranks, "sglang", queue=lambda at: (2.0, 0.0) if at < end + 31 else (0.0, 0.0),
                      tokens=frozen_at(end)).watch(600, Limits(health_runs=health_runs))  # fmt: skip
        assert world.failed_at is None


def test_a_core_that_asks_for_requests_has_none_whatever_the_gauges_say():
    """vLLM sets them in a step alone: after an abort of all requests they stay what they were."""
    ranks = always([core(stacks.VLLM_CORE_IDLE), *workers(*[stacks.VLLM_WORKER_IDLE] * 2)])
    world = World(ranks, queue=always((106.0, 0.0)), tokens=frozen_at(4.0)).watch(3600)
    assert world.failed_at is None


def test_a_stopped_replica_is_found_beside_one_that_serves():
    """The counters are sums over the replicas: they say nothing for the one that is stopped."""
    ranks = [Rank("DP0_TP0", stacks.SGLANG_IDLE, role="scheduler"),
             Rank("DP1_TP0", stacks.SGLANG_IDLE, role="scheduler", state="T")]  # fmt: skip
    world = World(always(ranks), "sglang", queue=always((3.0, 0.0)), tokens=lambda at: 50 * at).watch(600)
    assert world.last.verdict.odd == ("DP1_TP0",)
    assert world.failed_at is not None
    assert DEFAULTS.stall_timeout <= world.failed_at <= PROMISE


def test_a_core_with_no_worker_beside_it_that_hangs_in_a_step():
    """vLLM on one GPU runs the model in the core itself, and its gauges stay 0 when the first request hangs there."""
    hung = "forward (torch/nn/modules/module.py:1750)" + stacks.VLLM_CORE_LOOP.replace(
        "run_busy_loop", "_process_engine_step (vllm/v1/engine/core.py:800)\nrun_busy_loop", 1
    )
    world = World(from_then(50, always([core(hung)]), always([core(stacks.VLLM_CORE_IDLE)])),
                  queue=always((0.0, 0.0)), tokens=always(5.0)).watch(2000)  # fmt: skip
    assert world.failed_at is not None
    assert world.failed_at <= 50 + 2 * DEFAULTS.stall_limit + PROMISE


@pytest.mark.parametrize("state", ["S", "D"])
def test_weights_that_are_read_from_a_slow_disk_take_until_the_limit(state):
    reads = "read (safetensors/torch.py:310)\nload_weights (vllm/model_executor/models/llama.py:600)" + stacks.SPAWN
    ranks = [core(stacks.VLLM_CORE_STEP), Rank("TP0", reads, state=state, wchan="folio_wait_bit_common"),
             *workers(stacks.VLLM_ALL_REDUCE, stacks.VLLM_ALL_REDUCE)[1:]]  # fmt: skip
    world = World(always(ranks), queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(2000)
    assert world.failed_at is not None
    assert world.failed_at >= DEFAULTS.stall_limit


def test_a_runtime_that_sleeps_while_its_gpu_works_is_no_rest():
    sync = "synchronize (torch/cuda/streams.py:231)" + stacks.VLLM_FORWARD
    ranks = [core(stacks.VLLM_CORE_STEP), *workers(sync, sync)]
    world = World(always(ranks[1:]), queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.failed_at is None


def test_a_stopped_rank_of_an_engine_that_shows_no_work_is_found_at_the_limit():
    """What is stopped may be what would show it: vLLM's core, stopped while idle."""
    workers_idle = workers(*[stacks.VLLM_WORKER_IDLE] * 2)
    stopped = [Rank("engine_core", stacks.VLLM_CORE_IDLE, role="engine_core", state="T"), *workers_idle]
    well = [core(stacks.VLLM_CORE_IDLE), *workers_idle]
    world = World(from_then(50, always(stopped), always(well)), queue=always((0.0, 0.0)), tokens=always(4.0)).watch(600)
    assert world.failed_at is not None
    assert 350 <= world.failed_at <= 370
    assert "stopped" in " ".join(world.last.verdict.because)


def test_of_ranks_that_all_wait_for_requests_none_is_odd():
    ranks = schedulers(stacks.SGLANG_SLEEPS, *[stacks.SGLANG_IDLE] * 3)
    world = World(always(ranks), "sglang", queue=always((0.0, 1.0)), tokens=frozen_at(4.0)).watch(600)
    assert (world.last.reason, world.last.verdict.odd) == (Reason.ENGINE_STALLED, ())


def test_a_debugger_is_never_interrupted():
    ranks = always(
        [core(stacks.VLLM_CORE_STEP), *workers(stacks.VLLM_ALL_REDUCE), Rank("TP1", LOCK, state="t", traced=True)]
    )
    world = World(ranks, queue=always((1.0, 0.0)), tokens=frozen_at(0.0), health=always(Answer.REFUSED)).watch(3600)
    assert world.failed_at is None
    assert world.verdicts == {Liveness.BUSY}
    # After it has gone, the engine has as long as ever to go on.
    gone = World(from_then(500, vllm_odd, ranks), queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(3600)
    assert gone.failed_at is not None
    assert gone.failed_at >= 490 + DEFAULTS.stall_timeout


@pytest.mark.parametrize("wchan", ["folio_wait_bit_common", ""])
def test_a_rank_that_the_kernel_holds_is_found(wchan):
    ranks = always(
        [core(stacks.VLLM_CORE_STEP), Rank("TP0", stacks.VLLM_FORWARD, 1.0), Rank("TP1", None, state="D", wchan=wchan)]
    )
    world = World(from_then(2.0, ranks, vllm_serves), queue=always((1.0, 0.0)), tokens=frozen_at(2.0)).watch(1000)
    assert world.last.verdict.odd == ("TP1",)
    assert world.failed_at is not None
    assert world.failed_at <= 2 + PROMISE


def test_a_rank_that_reads_a_disk_is_not():
    ranks = always(
        [
            core(stacks.VLLM_CORE_STEP),
            *workers(stacks.VLLM_ALL_REDUCE),
            Rank("TP1", None, 0.4, state="D", wchan="folio_wait"),
        ]
    )
    world = World(ranks, queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(290)
    assert world.failed_at is None


def test_motion_is_busy_however_long_no_token_comes():
    world = World(vllm_serves, queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(3600)
    assert world.verdicts == {Liveness.BUSY}


def test_a_counter_that_starts_again_is_progress():
    world = World(vllm_odd, queue=always((1.0, 0.0)), tokens=lambda at: 1e6 if at < 25 else 3.0).watch(1000)
    assert world.failed_at is not None
    assert world.failed_at == 30 + DEFAULTS.stall_timeout


def test_one_false_503_is_nothing():
    world = World(
        sglang_idle, "sglang", queue=always((0.0, 0.0)), tokens=always(5.0),
        health=lambda at: Answer.UNHEALTHY if 300 <= at < 310 else Answer.OK,
    ).watch(900, GENERATES)  # fmt: skip
    assert world.failed_at is None


@pytest.mark.parametrize("ranks", [vllm_idle, vllm_odd])
def test_a_health_check_that_flaps_is_nothing(ranks):
    """It is answered now and then, and nothing else says that there is work."""
    world = World(ranks, health=lambda at: Answer.OK if int(at / 10) % 3 == 0 else Answer.TIMEOUT).watch(900)
    assert Liveness.DEAD not in world.verdicts
    assert ranks is vllm_odd or world.failed_at is None


def test_without_metrics_a_hang_shows_in_the_health_check():
    world = World(from_then(13.0, lambda at: schedulers(SG_ALL_REDUCE, SG_LOCK), sglang_idle), "sglang",
                  health=lambda at: Answer.TIMEOUT if at >= 13 else Answer.OK).watch(1000, GENERATES)  # fmt: skip
    assert world.last.verdict.odd == ("TP1",)
    assert world.failed_at is not None
    assert world.failed_at <= 13 + PROMISE


def test_metrics_that_vanish_are_no_progress():
    """The server hangs with the ranks: neither its health check nor its numbers are answered."""
    world = World(from_then(13.0, vllm_odd, vllm_serves), queue=lambda at: (1.0, 0.0) if at < 13 else (None, None),
                  tokens=lambda at: at if at < 13 else None,
                  health=lambda at: Answer.TIMEOUT if at >= 13 else Answer.OK).watch(1000)  # fmt: skip
    assert world.failed_at is not None
    assert world.failed_at <= 13 + PROMISE


def test_an_engine_that_says_it_is_over_is_dead():
    world = World(vllm_idle, health=lambda at: Answer.OVER if at > 5 else Answer.OK).watch(1000)
    assert (world.last.verdict.liveness, world.last.reason, world.last.probe) == (
        Liveness.DEAD, Reason.LIVENESS_FAILED, "http",
    )  # fmt: skip
    assert world.failed_at == 30
    assert world.last.verdict.because == ("the health check failed 3 times in a row: over",)


def test_nobody_listens_and_nobody_works_is_dead():
    world = World(vllm_idle, health=lambda at: Answer.REFUSED if at > 5 else Answer.OK).watch(1000)
    assert world.last.reason is Reason.LIVENESS_FAILED
    assert world.failed_at is not None
    assert world.failed_at <= 5 + PROMISE


def test_nobody_listens_and_all_spin_is_dead_at_the_limit():
    world = World(vllm_spins, health=lambda at: Answer.REFUSED if at > 5 else Answer.OK).watch(1000)
    assert world.last.reason is Reason.LIVENESS_FAILED
    assert world.failed_at is not None
    assert 300 <= world.failed_at <= 320


def test_a_drain_that_closed_its_port_is_busy():
    world = World(vllm_serves, health=lambda at: Answer.REFUSED if at > 5 else Answer.OK).watch(1000)
    assert world.failed_at is None


def test_where_nothing_can_be_read_the_limit_decides():
    blind = always([Rank(f"TP{n}", None, switches=None) for n in range(4)])
    world = World(blind, queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(1000)
    assert world.failed_at is not None
    assert 300 <= world.failed_at <= 310
    flapping = World(blind, health=lambda at: Answer.OK if at % 200 < 10 else Answer.TIMEOUT).watch(1000)
    assert flapping.failed_at is None


def test_a_short_period_does_not_keep_it_from_looking():
    world = World(vllm_odd, queue=always((1.0, 0.0)), tokens=frozen_at(0.0)).watch(100, Limits(probe_period=0.5))
    assert world.failed_at is not None
    assert world.failed_at <= DEFAULTS.stall_timeout + 1


def test_small_limits_keep_their_promise_too():
    limits = Limits(stall_timeout=3.0, stall_limit=12.0, probe_period=0.5)
    world = World(from_then(20.1, vllm_odd, vllm_serves), queue=always((1.0, 0.0)), tokens=frozen_at(20.1)).watch(
        100, limits
    )
    assert world.failed_at is not None
    assert 22 < world.failed_at <= 20.1 + 3 + 1


def test_a_few_failed_health_checks_are_no_work():
    """Ranks that stand anywhere are no hang where nothing but a health check or two says that they have work."""
    odd = World(lambda at: schedulers(SG_ALL_REDUCE, SG_LOCK), "sglang",
                health=lambda at: Answer.TIMEOUT if at >= 10 else Answer.OK)  # fmt: skip
    odd.watch(400, Limits(probe_failures=10, health_runs=True))
    assert odd.failed_at is not None
    assert odd.failed_at >= 100


SEEN = World(vllm_odd, queue=always((1.0, 0.0)))
OPEN = [Scrape(0.0, 1.0, 0.0, 5.0), Scrape(10.0, 1.0, 0.0, 5.0)]


def verdict_of(scrapes: list[Scrape], looks: list[Look], now: float) -> Liveness:
    return judge([], scrapes, looks, DEFAULTS, now, up_since=0.0).verdict.liveness


def test_looks_from_before_the_last_token_are_no_evidence():
    looks = [SEEN.close(at) for at in (12.0, 17.0, 22.0, 27.0)]
    assert verdict_of(OPEN, looks, 31.0) is Liveness.STUCK
    moved = [*OPEN, Scrape(30.0, 1.0, 0.0, 6.0)]
    assert verdict_of(moved, looks, 61.0) is Liveness.BUSY
    assert verdict_of(moved, [*looks, SEEN.close(60.0)], 61.0) is Liveness.BUSY
    assert verdict_of(moved, [*looks, SEEN.close(44.0), SEEN.close(60.0)], 61.0) is Liveness.STUCK


def test_an_old_look_at_a_core_in_a_step_is_no_work():
    looks = [SEEN.close(at) for at in (12.0, 17.0, 22.0)]
    assert verdict_of([*OPEN, Scrape(30.0, 0.0, 0.0, 6.0), Scrape(40.0, 0.0, 0.0, 6.0)], looks, 45.0) is Liveness.IDLE


def test_what_was_so_at_the_last_look_counts_until_the_next():
    """A caller whose looks take long has not seen that a compiler or a debugger has gone."""
    compiling = replace(SEEN.close(20.0), compilers=(Compiler(3, "ptxas", 1.0),))
    assert verdict_of(OPEN, [SEEN.close(15.0), compiling], 1000.0) is Liveness.COMPILING
    ranks = tuple(replace(rank, traced=True) for rank in SEEN.close(20.0).ranks)
    assert verdict_of(OPEN, [SEEN.close(15.0), Look(20.0, ranks)], 1000.0) is Liveness.BUSY


def test_what_is_older_may_be_dropped():
    assert keep_from(DEFAULTS, 1000.0) < 1000.0 - DEFAULTS.stall_limit - 2 * DEFAULTS.probe_period
    assert keep_from(Limits(stall_timeout=1.0, stall_limit=1.0, probe_period=1.0), 1000.0) < 1000.0 - 60.0


times = st.lists(st.floats(0, 400), max_size=12).map(sorted)
spots = st.none() | st.builds(
    lambda kind, place: Spot(kind, f"{place} (a.py:1)", f"{kind}|{place}"), st.sampled_from(Kind),
    st.sampled_from("abc"),
)  # fmt: skip
rank_looks = st.builds(
    RankLook, st.sampled_from(["TP0", "TP1", "PP1_TP0", "DP1_TP1", "engine_core"]),
    st.sampled_from(["scheduler", "worker", "engine_core"]), st.sampled_from("RSDTtZ"), st.booleans(),
    st.floats(0, 1000), st.none() | st.integers(0, 10**9), st.sampled_from(["", "a", "b"]), spots,
)  # fmt: skip
looks_of = st.builds(
    lambda at, ranks, compilers, gpus, quick: Look(at, tuple(ranks), tuple(compilers), tuple(gpus), quick),
    st.floats(0, 400), st.lists(rank_looks, max_size=5),
    st.lists(st.builds(Compiler, st.integers(1, 3), st.just("nvcc"), st.floats(0, 100)), max_size=2),
    st.lists(st.builds(Gpu, st.integers(0, 3), st.floats(0, 1), st.none() | st.floats(0, 2)), max_size=2),
    st.booleans(),
)  # fmt: skip
numbers = st.none() | st.floats()
probe_results = st.builds(ProbeResult, st.floats(0, 400), st.sampled_from(Answer), st.text(max_size=5))
series = st.fixed_dictionaries({
    "probes": st.lists(probe_results, max_size=12),
    "scrapes": st.lists(st.builds(Scrape, st.floats(0, 400), numbers, numbers, numbers), max_size=12),
    "looks": st.lists(looks_of, max_size=8),
})  # fmt: skip


def in_order(seen):
    return {name: sorted(values, key=lambda value: value.at) for name, values in seen.items()}


@settings(max_examples=50)
@given(series, st.booleans(), st.floats() | st.floats(0, 10_000), st.none() | st.floats(0, 400), st.booleans())
def test_nothing_makes_it_raise(seen, ordered, now, up_since, health_runs):
    judge(**(in_order(seen) if ordered else seen), limits=Limits(health_runs=health_runs), now=now, up_since=up_since)


@settings(max_examples=50)
@given(series, st.floats(400, 2000), st.floats(0, 2000), st.floats(0, 400))
def test_with_nothing_new_a_failure_stays_one(seen, now, later, up_since):
    seen = in_order(seen)
    first = judge(**seen, limits=DEFAULTS, now=now, up_since=up_since)
    if first.reason is not None:
        assert judge(**seen, limits=DEFAULTS, now=now + later, up_since=up_since).reason is first.reason


@settings(max_examples=50)
@given(series, st.floats(400, 430))
def test_while_a_counter_moves_it_is_never_stuck(seen, now):
    seen = in_order(seen)
    seen["scrapes"] = [Scrape(at, 3.0, 2.0, at) for at in range(0, int(now), 10)]
    assert judge(**seen, limits=DEFAULTS, now=now, up_since=0.0).verdict.liveness is not Liveness.STUCK


@settings(max_examples=50)
@given(series, st.floats(400, 2000), st.floats(0, 400))
def test_nothing_is_a_failure_before_the_stall_timeout_or_by_fewer_health_checks_than_told(seen, now, up_since):
    seen = in_order(seen)
    judgement = judge(**seen, limits=DEFAULTS, now=now, up_since=up_since)
    if judgement.verdict.liveness is Liveness.STUCK:
        assert judgement.verdict.since >= DEFAULTS.stall_timeout
    if judgement.verdict.liveness is Liveness.DEAD:
        learnt = [p.answer for p in seen["probes"] if p.answer is not Answer.UNKNOWN]
        assert all(answer in (Answer.REFUSED, Answer.OVER) for answer in learnt[-DEFAULTS.probe_failures :])
        assert len(learnt) >= DEFAULTS.probe_failures
    assert (judgement.reason is None) == (judgement.verdict.liveness not in (Liveness.STUCK, Liveness.DEAD))
    assert judgement.decide_at is None or judgement.decide_at > now

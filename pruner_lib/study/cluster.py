"""Run a study on several processes or machines: a Dask cluster with one experiment and one GPU per worker.

    python tasks.py study --workers 4                       # local processes
    python tasks.py study --scheduler tcp://node1:8786      # an existing cluster; see notebooks/CLUSTER.md

The runner passes the scheduler's address to the notebooks in `$PRUNER_LIB_SCHEDULER`, which `Study` reads, so
notebooks in JupyterLab or run by papermill itself can use the same cluster. Workers call
`run.run_experiment`; nothing here depends on experiments.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tqdm.auto import tqdm

SCHEDULER = "PRUNER_LIB_SCHEDULER"  # the address of a scheduler; empty: no cluster
GPUS = "CUDA_VISIBLE_DEVICES"
CONNECT_S = 20  # seconds to wait for a scheduler's answer


def connect(address: str) -> Any:
    """Connect to a scheduler: a Dask client.

    Raises:  ValueError: Dask is not installed, or nothing answers at the address.
    """
    _, distributed = _dask()
    try:
        return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = f"no Dask scheduler answers at {address!r}; give an address such as tcp://host:8786"
        advice = f"or leave {SCHEDULER} and --scheduler empty to run without a cluster"
        raise ValueError(f"{reason}, start one by `dask scheduler`, {advice}") from error


def results_of(client: Any, function: Callable[..., Any], calls: Sequence[tuple]) -> Iterator[Any]:
    """Call a function on the workers, and yield each result in the order of the calls once it is ready.

    If a worker is lost, its call is repeated on another one. After an error, calls that have not started are
    cancelled. If workers offer the Dask resource GPU, each call takes one of them.

    Args:    client: a Dask client or another executor with `submit`.
    """
    workers = client.scheduler_info()["workers"] if hasattr(client, "scheduler_info") else {}
    gpu = any(worker["resources"].get("GPU") for worker in workers.values())
    options = {"resources": {"GPU": 1}} if gpu else {}
    futures = [client.submit(function, *call, **options) for call in calls]
    try:
        for future in tqdm(futures, desc="experiments", unit="run"):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def serving(workers: int = 0, address: str = "") -> Iterator[str]:
    """Yield the address of a scheduler: `address`, or that of a new local cluster, or "" without workers.

    Local workers share the CPU cores; if there are GPUs, each worker has one. They end with the `with` block
    or, after an error or a signal, together with this process.

    Raises:  ValueError: both are given, nothing answers, Dask is not installed, or a GPU would be shared.
    """
    if workers and address:
        raise ValueError(f"--workers {workers} and --scheduler {address} were both given: give one of them")
    if address:
        connect(address).close()
    if not workers:
        yield address
        return
    gpus = _gpus()
    if workers < 0 or (gpus and workers > len(gpus)):
        limit = f" and at most {len(gpus)}, one per GPU" if gpus else ""
        raise ValueError(f"--workers is {workers}, but should be at least 1{limit}")
    dask, distributed = _dask()
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # it would warn after a signal
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    spawned = dict.fromkeys(names, threads) | {"DASK_LOGGING__DISTRIBUTED": "error"}
    config = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in spawned.items()}
    options = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0}  # one experiment at a time
    options |= {"resources": {"GPU": min(1, len(gpus))}, "preload": __name__}  # which calls `dask_setup`
    options["env"] = {SCHEDULER: "", GPUS: ",".join(gpus)}
    with dask.config.set(config):
        cluster = distributed.LocalCluster(**options, dashboard_address=None, silence_logs="ERROR")
        cluster.shutdown_on_close = False  # after an error it ends at once, with this process
        yield cluster.scheduler_address
        cluster.close()


def _gpus() -> list[str]:
    """List the GPUs that this process sees, in the form of $CUDA_VISIBLE_DEVICES."""
    import torch  # here, so that a runner without workers does not load it

    named, count = os.environ.get(GPUS), torch.cuda.device_count()
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def dask_setup(worker: Any) -> None:
    """Let a worker see only its own GPU, if there are any, and leave Ctrl-C to the runner, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus := os.environ[GPUS]:
        os.environ[GPUS] = gpus.split(",")[worker.name]


def _dask() -> tuple[ModuleType, ModuleType]:
    try:
        import dask  # optional: the extra `cluster`
        import distributed
    except ImportError as error:
        raise ValueError("Dask is not installed: run `pip install dask distributed`") from error
    return dask, distributed

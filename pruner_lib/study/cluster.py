"""More processes or machines: the experiments of a study on a Dask cluster, one a worker, one GPU a worker.

    python tasks.py study --workers 4                       # processes of this machine
    python tasks.py study --scheduler tcp://node1:8786      # a cluster that is there; notebooks/CLUSTER.md

The runner hands the scheduler's address to the notebooks by `$PRUNER_LIB_SCHEDULER`, which `Study` reads; so
one that is opened in JupyterLab or run by papermill alone uses the same cluster. What a worker does is
`run.run_experiment`; nothing here knows experiments.
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
CONNECT_S = 20  # seconds that a scheduler has to answer


def connect(address: str) -> Any:
    """Connect to a scheduler: a Dask client.

    Raises:  ValueError: Dask is not installed, or nothing answers at the address.
    """
    _, distributed = _dask()
    try:
        return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        said = f"no Dask scheduler answers at {address!r}, wanted an address as tcp://host:8786"
        advice = f"or leave {SCHEDULER} and --scheduler empty to run without a cluster"
        raise ValueError(f"{said}; start one by `dask scheduler`, {advice}") from error


def results_of(client: Any, function: Callable[..., Any], calls: Sequence[tuple]) -> Iterator[Any]:
    """Call a function on the workers; give the results in the order of the calls, as they are there.

    A call that is lost with its worker is made again on another one. After an error those that have not
    begun are cancelled. Where workers offer the Dask resource GPU, each call takes one of it.

    Args:    client: a Dask client or another executor with `submit`.
    """
    workers = client.scheduler_info()["workers"] if hasattr(client, "scheduler_info") else {}
    gpu = any(worker["resources"].get("GPU") for worker in workers.values())
    how = {"resources": {"GPU": 1}} if gpu else {}
    futures = [client.submit(function, *call, **how) for call in calls]
    try:
        for future in tqdm(futures, desc="experiments", unit="run"):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def serving(workers: int = 0, address: str = "") -> Iterator[str]:
    """Give the address of a scheduler: the one named, else one with so many workers on this machine, or "".

    The workers share the processor's cores; where there are GPUs each has one. They end with the block or,
    after an error or a signal, at once with this process.

    Raises:  ValueError: both are given, nothing answers, Dask is not installed, or a GPU would be shared.
    """
    if workers and address:
        said = f"--workers {workers} starts a cluster here, --scheduler {address} names one"
        raise ValueError(f"{said}: give one of them")
    if address:
        connect(address).close()
    if not workers:
        yield address
        return
    gpus = _gpus()
    if workers < 0 or (gpus and workers > len(gpus)):
        most = f"; there are {len(gpus)} GPUs, one for each" if gpus else ""
        raise ValueError(f"--workers is {workers}, but should be at least 1{most}")
    dask, distributed = _dask()
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # which speaks where a signal ends all
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    spawned = dict.fromkeys(names, threads) | {"DASK_LOGGING__DISTRIBUTED": "error"}
    config = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in spawned.items()}
    here = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0}  # one experiment at a time
    here |= {"resources": {"GPU": min(1, len(gpus))}, "preload": __name__}  # which calls `dask_setup`
    here["env"] = {SCHEDULER: "", GPUS: ",".join(gpus)}
    with dask.config.set(config):
        cluster = distributed.LocalCluster(**here, dashboard_address=None, silence_logs="ERROR")
        cluster.shutdown_on_close = False  # after an error it ends with this process, at once
        yield cluster.scheduler_address
        cluster.close()


def _gpus() -> list[str]:
    """Name the GPUs that this process sees, as `GPUS` names them."""
    import torch  # here: a runner without workers does not wait for it

    named, count = os.environ.get(GPUS), torch.cuda.device_count()
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def dask_setup(worker: Any) -> None:
    """Give a worker the GPU of its number, if there are any; the runner alone hears Ctrl-C, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus := os.environ[GPUS]:
        os.environ[GPUS] = gpus.split(",")[worker.name]


def _dask() -> tuple[ModuleType, ModuleType]:
    try:
        import dask  # optional: the extra `cluster`
        import distributed
    except ImportError as error:
        said = "a cluster needs Dask, which is not installed: run `pip install dask distributed`"
        raise ValueError(said) from error
    return dask, distributed

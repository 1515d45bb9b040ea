"""The keys that a sweep has besides those of its runs."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SweepConfig:
    """What is asked for of a sweep, and of no run in it.

    jobs: number of runs that work at the same time, each on its share of this machine; goes with -m
    trials: number of runs of a search, which chooses values by the results of earlier runs; goes with -m
    """

    jobs: int
    trials: int


SWEEP_KEYS = tuple(f"sweep.{field.name}" for field in fields(SweepConfig))


@dataclass
class JoblibLauncher:
    """Jobs on this machine, as `hydra/launcher=joblib` has them.

    n_jobs: number of runs that work at the same time; -1 is one for each core
    """

    n_jobs: int = -1


@dataclass
class LocalQueue:
    """Jobs that submitit starts on this machine, as it would hand them to a queue.

    timeout_min: minutes after which a job has to leave; it saves before
    cpus_per_task: CPUs of a job
    gpus_per_node: GPUs of a job
    mem_gb: main memory of a job in GB
    name: name of the jobs in the queue
    """

    timeout_min: int = 60
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: int | None = None
    name: str = "orpo"


@dataclass
class SlurmQueue(LocalQueue):
    """Jobs in the queue of Slurm, handed to it by submitit; see the manual of `sbatch`.

    partition, qos, account, constraint, exclude, gres, comment: as for `sbatch`
    nodes: machines of a job
    tasks_per_node: processes of a job on each machine, which share its steps
    gpus_per_task, cpus_per_gpu: GPUs of each process, and CPUs of each GPU
    mem_per_gpu, mem_per_cpu: main memory for each of them
    signal_delay_s: seconds before its time is up in which a job saves
    max_num_timeout: times that a job whose time was up is queued again, where it resumes
    """

    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 3


LAUNCHERS = {"joblib": JoblibLauncher, "submitit_local": LocalQueue, "submitit_slurm": SlurmQueue}
"""The launchers by the names that they have in Hydra; its plugins are not used, nor needed."""

"""Run the tasks of a pipeline in local processes, as Slurm jobs, or on Ray. Read executors.py first."""

"""Run a command in this process, or start a program several times, as torchrun does."""

import io
import os
import signal
import socket
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

from vit21k.cli.app import main


def run_command(*arguments, cwd):
    """Run ``vit21k ARGUMENTS`` in this process, which saves a second; return what it ended with."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    command = ["vit21k", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with (
            chdir(cwd),
            patch.object(sys, "argv", command),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def free_port():
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environments(num_processes):
    """Return the environment of each of the processes, as torchrun sets it."""
    port = free_port()
    return [
        {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(num_processes)
    ]


def start_processes(command, num_processes):
    """Start *command* so many times; return the processes."""
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(num_processes)
    ]


def run_processes(program, num_processes):
    """Run a *program* in several processes; return what they print."""
    processes = start_processes(["-c", program], num_processes)
    results = [process.communicate(timeout=120) for process in processes]
    for process, (_, stderr) in zip(processes, results, strict=True):
        assert process.returncode == 0, stderr
    # gloo of torch 2.10 prints a line, too
    return [stdout.strip().splitlines()[-1] for stdout, _ in results]

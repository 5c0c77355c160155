"""What the benchmarks share: times, peak memory, the machine in words, and a section of bench/results.md.

Import it from a script in this folder: `from measure import write_section`.
"""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch


def alternating_times(
    functions: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each function in each round, the functions taking turns so that a slow minute hits all of them.

    On CPU the seconds are CPU time of the whole process (every thread), which a busy neighbour disturbs least; on a GPU
    they are device time between two events. One round is run first and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            elapsed = _cuda_seconds(function) if device.type == "cuda" else _cpu_seconds(function)
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def _cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _cuda_seconds(function: Callable[[], object]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000


def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of `name`'s time over `other`'s in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """How far `function` raises memory above what is held when it starts, at its highest, in bytes.

    On a GPU: the allocator's peak. On CPU: the kernel's own high-water mark of resident memory, reset at the start
    (Linux only). Call it in a fresh process there, else memory that earlier work freed but the allocator kept hides
    a part of the rise.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # What the making of the inputs freed goes back first, or it would hide as much of the rise (glibc has this call).
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS: see man 5 proc
    before = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field}: peak memory on CPU needs Linux.")


def machine_description(device: torch.device) -> str:
    """Processor, cores, torch, date and load, in one line."""
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        name = f"{_cpu_name()}, {os.cpu_count()} cores"
    # Other work on the machine shows here: on an idle one the load is near 0 before a benchmark starts.
    return (
        f"{name}; {platform.system()} {platform.machine()}; torch {torch.__version__}; {date.today().isoformat()}; "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def _cpu_name() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def write_section(path: Path, title: str, markdown: str) -> None:
    """Replaces the section `title` of a results file, or appends it; other scripts' sections stay as they are."""
    begin, end = f"<!-- begin: {title} -->", f"<!-- end: {title} -->"
    section = f"{begin}\n## {title}\n\n{markdown.strip()}\n{end}\n"
    text = path.read_text() if path.exists() else "# Measured\n\nWritten by the scripts in this folder, not by hand.\n"
    if begin in text:
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{path} opens the section {title!r} and never ends it: delete the file and run again.")
        tail = rest.split(end, 1)[1].strip("\n")
        text = head + section + (f"\n{tail}\n" if tail else "")
    else:
        text = text.rstrip("\n") + "\n\n" + section
    path.write_text(text)

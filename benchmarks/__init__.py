"""Benchmarks, run from the checkout: `python -m benchmarks` lists the suites.

Every contender runs in a process of its own, is verified against float64, and is timed in turn with the others.

Order: stats, peers, report, machine, cases, costs, models, inputs, steps, verify, contenders, cpu, gpu, by_operation,
captured, distributed, processes, versions, cli, __main__.
"""

import sys

if sys.argv[0] == "-m":  # which Python replaces once it has found the module of the command
    from tinyvit.backend.process import end_if_environment_is_wrong

    end_if_environment_is_wrong("python -m benchmarks")

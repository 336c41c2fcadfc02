"""A function in a process of its own that need not import anything anew."""

import os
import signal
import sys
import traceback

SECONDS = 300


def forked(body):
    """The exit status of `body` in a fork of this process, and what it wrote to standard output and standard error."""
    pipes = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        _run(body, [end for _, end in pipes])
    texts = []
    for start, end in pipes:
        os.close(end)
        with open(start) as stream:
            texts.append(stream.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts


def _run(body, outputs):
    """Does not return."""
    code = 1
    try:
        signal.alarm(SECONDS)
        for number, end in enumerate(outputs, start=1):
            os.dup2(end, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))
        code = body() or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

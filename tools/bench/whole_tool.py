"""Wall time of one command, start to end: the fastest of five runs, as JSON. usage: whole_tool.py COMMAND..."""

import json
import subprocess
import sys
import time


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


print(json.dumps({"seconds": min(seconds(sys.argv[1:]) for _ in range(5))}))

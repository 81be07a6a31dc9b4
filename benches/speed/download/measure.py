"""Runs a command and tells what it cost by the kernel's own account, as one line of JSON.

    measure.py COMMAND [ARGUMENT]...

`wall` is the seconds until the command wrote a line that starts with `done`, or else until its end; `said` is that line.
`cpu` is user and system time in seconds and `peak` the most memory resident, in bytes, both of the whole process. A small
process must start the command: until the command's program is loaded, the starter's memory counts as the command's.
"""

import json
import os
import subprocess
import sys
import threading
import time

LONGEST = 300.0

begin = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
limit = threading.Timer(LONGEST, child.kill)
limit.daemon = True
limit.start()
ended, said = None, ""
for line in child.stdout:
    if line.startswith(b"done"):
        ended, said = time.monotonic(), line.decode().strip()
_, status, usage = os.wait4(child.pid, 0)
ended = ended or time.monotonic()
cost = {"wall": ended - begin, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024, "said": said}
print(json.dumps({"code": os.waitstatus_to_exitcode(status), **cost}))

"""ray job submit --working-dir . -- python jobs/audit.py RUN [--a.b=c ...]"""

import sys

from busray.cli import finish, main

if __name__ == "__main__":
    finish(main(["audit", *sys.argv[1:]]))

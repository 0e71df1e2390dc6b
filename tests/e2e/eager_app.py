"""`app.py` whose training runs take as much of the processor as anything else.

    python -m tests.e2e.eager_app --port 7860

Where other workers keep the processor busy, a run that leaves it to them would never come to an end.
"""

import sys

import app
from studio.backend import child

if __name__ == "__main__":
    child.NICENESS = 0
    sys.exit(app.main())

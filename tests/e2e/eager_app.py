"""`app.py` for tests: a warning while our modules are imported ends it.

    python -m tests.e2e.eager_app --port 7860

Training runs have normal priority: with the usual low one they would starve beside other workers.
"""

import sys
import warnings

# Imported first: the warnings of libraries are not ours to fix.
import bitsandbytes  # noqa: F401
import gradio  # noqa: F401
import peft  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("error", DeprecationWarning)
    warnings.simplefilter("error", UserWarning)
    import app
    from studio.backend.system import process

if __name__ == "__main__":
    process.NICENESS = 0
    sys.exit(app.main())

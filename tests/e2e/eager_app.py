"""`app.py` for tests, which ends where a module of ours warns when it is imported.

    python -m tests.e2e.eager_app --port 7860

Its training runs take as much of the processor as anything else: where other workers keep it busy, a run that leaves
it to them would never come to an end.
"""

import sys
import warnings

# What libraries warn of in their own modules is not ours to mend.
import bitsandbytes  # noqa: F401
import gradio  # noqa: F401
import peft  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("error", DeprecationWarning)
    warnings.simplefilter("error", UserWarning)
    import app
    from studio.backend import child

if __name__ == "__main__":
    child.NICENESS = 0
    sys.exit(app.main())

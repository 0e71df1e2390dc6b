"""JetMoE Studio. Importing it settles what must be settled before torch and bitsandbytes are loaded."""

import logging
import os
import warnings

# Waiting threads of libgomp spin for long by default. On two cores that also serve a page, compile or run a browser,
# the spinning starves the very thread that is waited for. This many turns bridge the gaps between two products, and no
# more: on idle cores the speed is the same, on busy ones twice as high or more.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# PEFT asks transformers by a name that will go away; nobody who reads the studio's output can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
# At import it announces that an optional kernel package, to be fetched from a hub, is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

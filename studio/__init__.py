"""JetMoE Studio. Importing it settles what must be settled before torch and bitsandbytes are loaded."""

import logging
import os
import warnings

# Waiting threads of libgomp spin for long by default. On cores that also serve a page, train or run a browser, the
# spinning starves the very thread that is waited for. Decoding has threads of its own, and the products of prompts and
# training are long enough to wake a sleeping thread for: on busy cores, 1,000 turns are twice as fast as 20,000.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# PEFT asks transformers by a name that will go away; nobody who reads the studio's output can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
# At import it announces that an optional kernel package, to be fetched from a hub, is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

"""JetMoE Studio. Importing it settles how long OpenMP spins, which must happen before torch is loaded."""

import os

# Waiting threads of libgomp spin for long by default. On two cores that also serve a page, compile or run a browser,
# the spinning starves the very thread that is waited for. This many turns bridge the gaps between two products, and no
# more: on idle cores the speed is the same, on busy ones twice as high or more.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

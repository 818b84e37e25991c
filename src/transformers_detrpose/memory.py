"""How the C library hands out memory."""

import ctypes
import sys

# Parameters of glibc's mallopt, see <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
MOST = 2**31 - 1  # bytes


def keep_freed_memory():
    """Keeps what the process frees for what it allocates next, where the C library is glibc.

    By default, glibc returns large blocks to the system at once and asks for them anew, page by page. With large
    batches on a CPU, that can take as long as the network itself. Call it before the model runs.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        for parameter, value in ((ARENA_MAX, 1), (MMAP_THRESHOLD, MOST), (TRIM_THRESHOLD, MOST)):
            mallopt(parameter, value)

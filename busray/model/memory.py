"""What is done where a device's memory does not hold a batch: it is worked through in slices."""

from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU, or of the machine, was too small."""
    # torch raises a plain RuntimeError where it is the machine's memory.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def in_slices(count: int, size: int, work: Callable[[slice], None]) -> int:
    """work(slice) for consecutive slices of at most `size` of `count` items.

    A slice that the memory does not hold is done again in halves, and all later ones are as small:
    the size that fitted is returned. `work` must leave nothing behind where it fails. The error is
    raised where one item is too large.
    """
    at = 0
    while at < count:
        fits = True
        try:
            work(slice(at, min(at + size, count)))
        except Exception as error:
            size = min(size, count - at)
            if not is_out_of_memory(error) or size == 1:
                raise
            fits = False
        # Outside the handler, whose traceback would keep the tensors of what failed.
        if fits:
            at += size
        else:
            size //= 2
            torch.cuda.empty_cache()
    return size


def fits_on(device: torch.device, size: int) -> bool:
    """Whether `size` bytes take at most a quarter of the memory that this GPU has free."""
    free, _ = torch.cuda.mem_get_info(device)
    return 4 * size <= free

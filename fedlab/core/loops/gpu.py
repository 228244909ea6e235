"""What Triton compiles for a GPU of the package's core: random words.

torch brings Triton where it brings CUDA. Without it, torch's own operations do the same.

Letters: n counters.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "key0", "key1"])
def philox(client, block, out, count, key0, key1, size: tl.constexpr):
    """Philox4x32-10, see `fedlab.core.randomness`: four words out (n, 4) of each counter.

    client, block (n,): int64, their low and high halves are the counter.
    """
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    here = at < count
    who, which = tl.load(client + at, mask=here, other=0), tl.load(block + at, mask=here, other=0)
    a, b, c, d = tl.philox_impl(
        which.to(tl.uint32),
        (which >> 32).to(tl.uint32),
        who.to(tl.uint32),
        (who >> 32).to(tl.uint32),
        key0.to(tl.uint32),
        key1.to(tl.uint32),
        10,
    )
    tl.store(out + at * 4, a.to(tl.int32, bitcast=True), mask=here)
    tl.store(out + at * 4 + 1, b.to(tl.int32, bitcast=True), mask=here)
    tl.store(out + at * 4 + 2, c.to(tl.int32, bitcast=True), mask=here)
    tl.store(out + at * 4 + 3, d.to(tl.int32, bitcast=True), mask=here)

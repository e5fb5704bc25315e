#pragma once
// Tiles of a matrix on their way to shared memory by the copy engine, and the barriers that tell when they are there.

// What the driver makes of a matrix (`CUtensorMap`).
struct __align__(64) TensorMap {
    u64 words[16];
};

DEVICE void init_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

DEVICE void arrive_at(u32 barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

// The loop stands in C++ on purpose: written within the assembly it made steps of one row 5 % slower.
DEVICE void wait_for(u32 barrier, u32 phase) {
    u32 done = 0;
    while (!done) {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
    }
}

DEVICE void expect_bytes(u32 barrier, u32 count) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Asks for one tile, from element `i` of the row `row` on. What lies outside the matrix comes as 0.
DEVICE void fetch_tile(u32 to, const TensorMap* matrix, int i, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(matrix), "r"(i), "r"(row), "r"(barrier) : "memory");
}

// The same from one of the pieces that each row is cut into. What lies outside of the piece comes as 0, too.
DEVICE void fetch_tile(u32 to, const TensorMap* matrix, int i, int piece, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
                 ::"r"(to), "l"(matrix), "r"(i), "r"(piece), "r"(row), "r"(barrier) : "memory");
}

// The descriptor of wgmma for rows of 128 swizzled bytes with 1,024 bytes between groups of eight. The lower half has the
// address, in units of 16 bytes.
DEVICE u32 low_descriptor(u32 address) { return address / 16 | 1 << 16; }

DEVICE u64 descriptor(u32 low) { return (u64)(64 | 1 << 30) << 32 | low; }

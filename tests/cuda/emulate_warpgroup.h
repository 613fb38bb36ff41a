// Products of warpgroups (wgmma, compute capability 9.0), for emulate.h, which includes this.

#pragma once

namespace emulate {

// wgmma's matrix descriptor: bits 0-13 address, 16-29 leading and 32-45 stride offset, each in 16 bytes; 62-63: 1 for the 128-byte
// swizzle, which exchanges address bits 4-6 with their exclusive or with bits 7-9. Byte of element (row, k), 16 bits each, before the
// swizzle (PTX ISA, "Strides"; CUTLASS, mma_sm90_desc.hpp): K-major, rows of 128 bytes in groups of 8, `stride` from one group to the
// next; MN-major, 64 rows side by side, then `leading` further; k of 128 bytes in groups of 8, `stride` from one to the next.
inline unsigned described(unsigned long long d, bool down, unsigned row, unsigned k) {
    if (d >> 62 != 1 || d >> 49 & 7) fail("wgmma: another layout than the 128-byte swizzle");
    const unsigned start = (d & 0x3fff) * 16, leading = (d >> 16 & 0x3fff) * 16, stride = (d >> 32 & 0x3fff) * 16;
    const unsigned at = start + (down ? row % 64 * 2 + row / 64 * leading + k % 8 * 128 + k / 8 * stride
                                      : row % 8 * 128 + row / 8 * stride + k * 2);
    return at ^ (at >> 7 & 7) << 4;
}

constexpr int WGMMA_N = 256;

inline void issue_product(float (&d)[128], unsigned long long a, unsigned long long b, bool a_down, bool b_down) {
    struct Mine { float* d; unsigned long long a, b; } mine{d, a, b};
    together("wgmma", &mine, [&](void** all) {
        Product p{{}, a, b, a_down, b_down};
        const int warp = (int)self->id / WARP;
        for (int l = 0; l < WARP; l++) {
            const Mine& m = *(Mine*)all[l];
            if (m.a != a || m.b != b) fail("wgmma: descriptors differ in the warp");
            p.d[l] = m.d;
        }
        const auto check = [&](unsigned at) {
            shared_read(at, 2, warp * WARP);
            if (!block->words[at / 4].fenced) fail("wgmma reads shared %u, which no fence has made visible", at);
        };
        for (unsigned k = 0; k < 16; k++) {
            for (unsigned row = 0; row < 16; row++) check(described(a, a_down, warp % 4 * 16 + row, k));
            for (unsigned row = 0; row < WGMMA_N; row++) check(described(b, b_down, row, k));
        }
        my_warp().products.push_back(p);
    });
}

inline void run_product(const Product& p, int warp) {
    static thread_local float a[16][16], b[16][WGMMA_N];
    const auto value = [](unsigned at) {
        uint16_t bits;
        memcpy(&bits, block->shared.data() + at, 2);
        return bf16_value(bits);
    };
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned row = 0; row < 16; row++) a[row][k] = value(described(p.a, p.a_down, warp % 4 * 16 + row, k));
        for (unsigned row = 0; row < WGMMA_N; row++) b[k][row] = value(described(p.b, p.b_down, row, k));
    }
    // Element e of lane l: row l / 4, + 8 for e % 4 >= 2; column e / 4 * 8 + l % 4 * 2 + e % 2.
    for (int l = 0; l < WARP; l++)
        for (int e = 0; e < WGMMA_N / 2; e++) {
            const int row = l / 4 + e % 4 / 2 * 8, column = e / 4 * 8 + l % 4 * 2 + e % 2;
            double sum = p.d[l][e];
            for (int k = 0; k < 16; k++) sum += (double)a[row][k] * b[k][column];
            p.d[l][e] = (float)sum;
        }
}

} // namespace emulate

// ---- The functions of machine.cuh

inline unsigned shared_address(unsigned at) { return at; }
inline void wgmma_fence() { emulate::together("wgmma.fence", nullptr, [](void**) {}); }
inline void wgmma_commit() {
    emulate::together("wgmma.commit_group", nullptr, [](void**) {
        emulate::Warp& w = emulate::my_warp();
        w.product_groups.push_back(std::move(w.products));
        w.products.clear();
    });
}
template <int N> inline void wgmma_wait() {
    emulate::together("wgmma.wait_group", nullptr, [](void**) {
        emulate::Warp& w = emulate::my_warp();
        while (w.product_groups.size() > N) {
            for (const emulate::Product& p : w.product_groups.front()) emulate::run_product(p, (int)emulate::self->id / emulate::WARP);
            w.product_groups.pop_front();
        }
    });
}
inline void fence_async() {
    for (const emulate::Copy& c : emulate::self->unfenced)
        for (unsigned i = c.at / 4; i < (c.at + c.size) / 4; i++) emulate::block->words[i].fenced = true;
    emulate::self->unfenced.clear();
}
template <int A_DOWN, int B_DOWN> inline void wgmma_64x256x16(float (&d)[128], unsigned long long a, unsigned long long b) {
    emulate::issue_product(d, a, b, A_DOWN, B_DOWN);
}

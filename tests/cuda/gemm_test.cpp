// The kernel of crates/core/src/ops/cube/cuda/gemm.cu, on the CPU (emulate.h), against float64 sums written plainly.
//
//   g++ -O2 -std=c++20 -pthread -Wno-unknown-pragmas -DGEMM=8 -Icrates/core/src/ops/cube/cuda tests/cuda/gemm_test.cpp
//
// tests/cuda/check.py builds and runs it for each value of GEMM. Bounds, of the largest error over the largest magnitude: 2^-20 for
// float32 (a rounding of float32 a product of 16, here), 2^-8 more for bfloat16.

#include "emulate.h"

#include "machine.cuh"

#include "gemm.cu"

#include <random>
#include <string>

namespace {

struct Case { int m, n, k, pad; bool accumulate; };

double run(const Case& c, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto up = [](int x) { return (x + 7) / 8 * 8; };
    // Rows with a gap, of numbers that are not.
    const int row_a = up(A_DOWN ? c.m : c.k) + c.pad, row_b = up(B_DOWN ? c.n : c.k) + c.pad;
    const size_t size_a = (size_t)row_a * ((A_DOWN ? c.k : c.m) - 1) + (A_DOWN ? c.m : c.k);
    const size_t size_b = (size_t)row_b * ((B_DOWN ? c.k : c.n) - 1) + (B_DOWN ? c.n : c.k);
    // Aligned to 16 bytes, and as long as they must be at least.
    std::vector<uint4> store_a(size_a / 8 + 1), store_b(size_b / 8 + 1), store_c(((size_t)c.m * c.n + 1) / 2 + 4);
    bf16 *a = (bf16*)store_a.data(), *b = (bf16*)store_b.data();
    void* out = store_c.data();
    std::fill(a, a + size_a, (bf16)0xffff), std::fill(b, b + size_b, (bf16)0xffff);
    const auto at_a = [&](int i, int k) { return A_DOWN ? (size_t)k * row_a + i : (size_t)i * row_a + k; };
    const auto at_b = [&](int k, int j) { return B_DOWN ? (size_t)k * row_b + j : (size_t)j * row_b + k; };
    for (int i = 0; i < c.m; i++)
        for (int k = 0; k < c.k; k++) a[at_a(i, k)] = (bf16)emulate::bf16_bits(normal(rng));
    for (int k = 0; k < c.k; k++)
        for (int j = 0; j < c.n; j++) b[at_b(k, j)] = (bf16)emulate::bf16_bits(normal(rng));
    std::vector<double> want((size_t)c.m * c.n);
    for (size_t i = 0; i < want.size(); i++) {
        const float x = c.accumulate ? normal(rng) : NAN;
        if (NARROW) ((bf16*)out)[i] = (bf16)emulate::bf16_bits(x), want[i] = emulate::bf16_value(emulate::bf16_bits(x));
        else ((float*)out)[i] = x, want[i] = x;
        if (!c.accumulate) want[i] = 0;
    }
    for (int i = 0; i < c.m; i++)
        for (int k = 0; k < c.k; k++) {
            const double x = emulate::bf16_value(a[at_a(i, k)]);
            for (int j = 0; j < c.n; j++) want[(size_t)i * c.n + j] += x * emulate::bf16_value(b[at_b(k, j)]);
        }
    emulate::buffers.clear();
    emulate::add_buffer("a", a, size_a * 2, false);
    emulate::add_buffer("b", b, size_b * 2, false);
    emulate::add_buffer("c", out, want.size() * (NARROW ? 2 : 4), true, true, c.accumulate);
    typedef unsigned long long u64;
    const Params p{(u64)c.m, (u64)c.n, (u64)c.k, (u64)row_a, (u64)row_b, c.accumulate};
    const unsigned tiles = ((c.m + TILE_M - 1) / TILE_M) * ((c.n + TILE_N - 1) / TILE_N);
    emulate::launch({tiles, 1, 1}, THREADS, STAGES * STAGE_BYTES, [&] { gemm(a, b, out, p); });
    double error = 0, size = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double got = NARROW ? emulate::bf16_value(((bf16*)out)[i]) : ((float*)out)[i];
        const double off = std::fabs(got - want[i]);
        error = std::isnan(off) || off > error ? off : error;
        size = std::max(size, std::fabs(want[i]));
        if (std::isnan(error)) return error;
    }
    return error / size;
}

} // namespace

int main(int argc, char** argv) {
    const bool verbose = argc > 1 && std::string(argv[1]) == "-v";
    const Case cases[] = {
        {1, 1, 1, 0, false},      {1, 2, 8, 8, true},       {33, 65, 48, 0, false},  {33, 65, 80, 8, true},
        {130, 257, 72, 0, false}, {64, 256, 64, 0, false},  {129, 258, 288, 0, true}, {300, 40, 500, 16, false},
        {16, 700, 129, 0, false}, {1200, 300, 16, 0, false},
    };
    const double bound = NARROW ? 0x1p-8 + 0x1p-20 : 0x1p-20;
    double most = 0;
    int failures = 0;
    for (const Case& c : cases) {
        const double error = run(c, c.m * 1000 + c.n);
        failures += !(error <= bound);
        most = error > most ? error : most;
        if (verbose || !(error <= bound))
            printf("GEMM %2d: %d x %d x %d%s error %.2e%s\n", GEMM, c.m, c.k, c.n, c.accumulate ? " added" : "", error,
                   error <= bound ? "" : "  WRONG");
    }
    printf("GEMM %2d: %zu cases, %d wrong; largest error %.2e; shared memory %d\n", GEMM, std::size(cases), failures, most,
           STAGES * STAGE_BYTES);
    return failures != 0;
}

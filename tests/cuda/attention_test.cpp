// The kernels of crates/core/src/ops/cube/cuda/attention_*.cu, on the CPU (emulate.h), against float64 sums written plainly.
//
//   g++ -O2 -std=c++20 -pthread -Wno-unknown-pragmas -DHEAD_DIM=64 -Icrates/core/src/ops/cube/cuda tests/cuda/attention_test.cpp
//
// tests/cuda/check.py builds and runs it for each head size. Bounds, as the largest error over the largest magnitude of the
// tensor (bfloat16 rounds by at most 2^-9 of a number):
//   out                2^-8: the weights and the result are rounded once each
//   dq, dk, dv         2^-7: the weights or their gradient, and the result; errors of a sum of few terms may all have one sign
//   lse                2^-22 of max(1, largest): a rounding or two, however many tiles there are
//   delta              2^-17 likewise: float32 sums
//   exact              2^-6: the gradients, all together, against those of exact weights and out. Delta is taken from the rounded
//                      out, and where the gradient of a weight is a small difference of large numbers its error remains

#include "emulate.h"

#include "machine.cuh"

#include "attention.cuh"

#include "attention_forward.cu"

#include "attention_backward.cu"

#include <random>
#include <string>
#include <sys/mman.h>

namespace {

// `far`: a row so long that offsets pass 2^32 bytes, of documents of one token but for the last one. Memory is only touched,
// and kernels only run, where the last two tiles and the last group of heads are. `sink`: queries and the first key have a
// common part, so that the maximum is found in the first tile, as with attention sinks.
struct Case { int batch, seq, heads, kv_heads; bool documents, far = false, sink = false; };

// Largest errors: of the results given the kernel's own input (for gradients, the rounded out), and `exact`: of the gradients
// against those of exact weights and out.
struct Errors {
    double out = 0, lse = 0, delta = 0, dq = 0, dk = 0, dv = 0, exact = 0;
    static constexpr double Errors::* ALL[] = {&Errors::out, &Errors::lse, &Errors::delta, &Errors::dq,
                                               &Errors::dk, &Errors::dv, &Errors::exact};
};

double worst(double a, double b) { return std::isnan(a) || a > b ? a : b; }

// Zeros that take memory only where they are touched; aligned to pages.
template <class T> struct Array {
    T* p;
    size_t n;
    explicit Array(size_t n) : n(n) {
        p = (T*)mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) emulate::fail("no memory for %zu bytes", n * sizeof(T));
    }
    Array(const Array&) = delete;
    ~Array() { munmap(p, n * sizeof(T)); }
    T& operator[](size_t i) { return p[i]; }
    size_t bytes() const { return n * sizeof(T); }
};

double value(bf16 x) { return emulate::bf16_value(x); }

Errors run(const Case& c, unsigned seed) {
    const int heads = c.heads, kv = c.kv_heads, seq = c.seq, width = heads + 2 * kv, group = heads / kv;
    const int first_row = c.far ? seq / TILE * TILE - TILE : 0, first_kv = c.far ? kv - 1 : 0, first_head = first_kv * group;
    const size_t rows = (size_t)c.batch * seq;
    const double scale = 1.0 / std::sqrt((double)D) * 1.5;
    const auto at = [&](int b, int row, int head) { return (((size_t)b * seq + row) * width + head) * D; };
    const auto out_at = [&](int b, int row, int head) { return (((size_t)b * seq + row) * heads + head) * D; };

    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    Array<bf16> qkv(rows * width * D), dout(rows * heads * D), out(rows * heads * D), dqkv(rows * width * D);
    Array<float> lse(rows * heads), delta(rows * heads);
    Array<int> starts(c.documents ? rows : 1);
    // Every number that is not an input of the wanted blocks stays NaN, or is outside the pages touched.
    for (int b = 0; b < c.batch; b++)
        for (int i = first_row; i < seq; i++) {
            for (int h = 0; h < width; h++) {
                const bool wanted = h < heads ? h >= first_head : (h - heads) % kv >= first_kv;
                for (int d = 0; d < D && wanted; d++) {
                    const bool first_key = i == 0 && h >= heads && h < heads + kv;
                    const float x = normal(rng);
                    const float sink = first_key ? 0.5f : h < heads ? x + 1 : x;
                    qkv[at(b, i, h) + d] = (bf16)emulate::bf16_bits(c.sink ? sink : x);
                    dqkv[at(b, i, h) + d] = 0xffff;
                }
            }
            for (int h = first_head; h < heads; h++) {
                for (int d = 0; d < D; d++) {
                    dout[out_at(b, i, h) + d] = (bf16)emulate::bf16_bits(normal(rng));
                    out[out_at(b, i, h) + d] = 0xffff;
                }
                lse[((size_t)b * heads + h) * seq + i] = delta[((size_t)b * heads + h) * seq + i] = NAN;
            }
        }
    // Documents of random lengths, some of them short, some longer than a tile.
    if (c.documents)
        for (int b = 0; b < c.batch; b++)
            for (int i = 0, first = 0, left = 0; i < seq; i++) {
                if (left-- == 0) first = i, left = seq <= 2 || i < first_row ? 0 : (int)(rng() % (rng() % 3 ? 40 : 170));
                starts[(size_t)b * seq + i] = first;
            }

    typedef unsigned long long u64;
    const Params p{(u64)c.batch, (u64)seq, (u64)heads, (u64)kv, c.documents, scale};
    const auto buffers = [&](bool forward, bool with_delta, bool backward) {
        emulate::buffers.clear();
        emulate::add_buffer("qkv", qkv.p, qkv.bytes(), false);
        emulate::add_buffer("dout", dout.p, dout.bytes(), false);
        if (c.documents) emulate::add_buffer("starts", starts.p, starts.bytes(), false);
        emulate::add_buffer("out", out.p, out.bytes(), forward, !c.far);
        emulate::add_buffer("lse", lse.p, lse.bytes(), forward, !c.far);
        emulate::add_buffer("delta", delta.p, delta.bytes(), with_delta, !c.far);
        if (backward) emulate::add_buffer("dqkv", dqkv.p, dqkv.bytes(), true, !c.far);
    };
    const auto launch = [&](int tile, bool reversed, int all_heads, int first, unsigned threads, unsigned shared, auto kernel) {
        const unsigned tiles = (seq + tile - 1) / tile, first_tile = first_row / tile;
        emulate::launch({tiles, (unsigned)all_heads, (unsigned)c.batch}, threads, shared, kernel, [=](uint3 i) {
            return (reversed ? tiles - 1 - i.x : i.x) >= first_tile && (int)i.y >= first;
        });
    };
    buffers(true, false, false);
    launch(TILE, true, heads, first_head, FORWARD_THREADS, FORWARD_SHARED,
           [&] { attention_forward(qkv.p, starts.p, out.p, lse.p, p); });
    buffers(false, true, false);
    launch(DELTA_ROWS, false, heads, first_head, DELTA_THREADS, 0, [&] { attention_delta(out.p, dout.p, delta.p, p); });
    buffers(false, false, true);
    launch(TILE, false, kv, first_kv, KV_THREADS, KV_SHARED,
           [&] { attention_backward_kv(qkv.p, starts.p, dout.p, lse.p, delta.p, dqkv.p, p); });
    launch(TILE, true, heads, first_head, Q_THREADS, Q_SHARED,
           [&] { attention_backward_q(qkv.p, starts.p, dout.p, lse.p, delta.p, dqkv.p, p); });

    // The same in float64. Gradients: with the exact delta, and with that of the rounded out.
    Errors e;
    Errors size;
    size.lse = size.delta = 1;
    const int window = seq - first_row;
    std::vector<double> want((size_t)c.batch * window * width * D), exact(want.size()), weights(seq), dweights(seq), o(D);
    const auto want_at = [&](int b, int row, int head) { return (((size_t)b * window + row - first_row) * width + head) * D; };
    const auto compare = [](double& error, double& magnitude, double got, double wanted) {
        error = worst(std::fabs(got - wanted), error);
        magnitude = std::max(magnitude, std::fabs(wanted));
    };
    for (int b = 0; b < c.batch; b++)
        for (int h = first_head; h < heads; h++)
            for (int i = first_row; i < seq; i++) {
                const int k = heads + h / group, v = k + kv, first = c.documents ? starts[(size_t)b * seq + i] : 0;
                const bf16 *q = &qkv[at(b, i, h)], *go = &dout[out_at(b, i, h)], *stored = &out[out_at(b, i, h)];
                double top = -1e300, sum = 0;
                for (int j = first; j <= i; j++) {
                    const bf16* x = &qkv[at(b, j, k)];
                    weights[j] = 0;
                    for (int d = 0; d < D; d++) weights[j] += value(q[d]) * value(x[d]);
                    weights[j] *= scale;
                    top = std::max(top, weights[j]);
                }
                for (int j = first; j <= i; j++) sum += std::exp(weights[j] - top);
                const double log_sum = top + std::log(sum);
                o.assign(D, 0.0);
                for (int j = first; j <= i; j++) {
                    const bf16* x = &qkv[at(b, j, v)];
                    weights[j] = std::exp(weights[j] - log_sum);
                    dweights[j] = 0;
                    for (int d = 0; d < D; d++) {
                        o[d] += weights[j] * value(x[d]);
                        dweights[j] += value(go[d]) * value(x[d]);
                    }
                }
                double common = 0, rounded = 0;
                for (int d = 0; d < D; d++) {
                    common += value(go[d]) * o[d];
                    rounded += value(go[d]) * value(stored[d]);
                    compare(e.out, size.out, value(stored[d]), o[d]);
                }
                const size_t r = ((size_t)b * heads + h) * seq + i;
                compare(e.lse, size.lse, lse[r], log_sum);
                compare(e.delta, size.delta, delta[r], rounded);
                for (int j = first; j <= i; j++)
                    for (bool given : {true, false}) {
                        double* to = given ? want.data() : exact.data();
                        double *dq = to + want_at(b, i, h), *dk = to + want_at(b, j, k), *dv = to + want_at(b, j, v);
                        const double ds = weights[j] * (dweights[j] - (given ? rounded : common)) * scale;
                        const bf16* x = &qkv[at(b, j, k)];
                        for (int d = 0; d < D; d++) {
                            dq[d] += ds * value(x[d]);
                            dk[d] += ds * value(q[d]);
                            dv[d] += weights[j] * value(go[d]);
                        }
                    }
            }
    for (int b = 0; b < c.batch; b++)
        for (int i = first_row; i < seq; i++)
            for (int h = 0; h < width; h++) {
                if (h < heads ? h < first_head : (h - heads) % kv < first_kv) continue;
                const auto field = h < heads ? &Errors::dq : h < heads + kv ? &Errors::dk : &Errors::dv;
                for (int d = 0; d < D; d++) {
                    const size_t w = want_at(b, i, h) + d;
                    const double got = value(dqkv[at(b, i, h) + d]);
                    compare(e.*field, size.*field, got, want[w]);
                    compare(e.exact, size.exact, got, exact[w]);
                }
            }
    // Documents of one token: the weight is 1 and the gradients of q and k are 0, up to the rounding of delta.
    if (seq == 1 || (seq == 2 && c.documents)) size.dq = size.dk = std::max(1.0, size.dv);
    for (auto field : Errors::ALL) e.*field /= size.*field;
    return e;
}

// first_starting_after against a plain search.
bool search_is_right() {
    std::mt19937 rng(1);
    for (int seq : {1, 2, 31, 33, 500, 5000}) {
        std::vector<int> starts(seq), found(1);
        for (int i = 0, left = 0; i < seq; i++) {
            starts[i] = i > 0 && left-- > 0 ? starts[i - 1] : i;
            if (starts[i] == i) left = (int)(rng() % (seq / 3 + 1));
        }
        for (int n = 0; n < 200; n++) {
            const int first = (int)(rng() % seq), key = std::max((int)(rng() % seq), first - 1);
            int want = first;
            while (want < seq && starts[want] <= key) want++;
            emulate::buffers.clear();
            emulate::add_buffer("starts", starts.data(), starts.size() * 4, false);
            emulate::launch({1, 1, 1}, 32, 0, [&] {
                const int i = first_starting_after(starts.data(), first, seq, key);
                if (threadIdx.x == n % 32u) found[0] = i;
            });
            if (found[0] != want) {
                printf("first_starting_after: %d, not %d, of %d from %d with key %d\n", found[0], want, seq, first, key);
                return false;
            }
        }
    }
    return true;
}

} // namespace

int main(int argc, char** argv) {
    const bool verbose = argc > 1 && std::string(argv[1]) == "-v";
    const double rounding = 0x1p-22, fine = 0x1p-17, once = 0x1p-8, twice = 0x1p-7;
    const Errors bound = {.out = once, .lse = rounding, .delta = fine, .dq = twice, .dk = twice, .dv = twice, .exact = 0x1p-6};
    std::vector<Case> cases;
    for (int seq : {1, 2, 63, 65, 128, 257})
        for (auto [heads, kv_heads] : {std::pair{2, 2}, {4, 2}, {4, 1}})
            for (bool documents : {false, true}) cases.push_back({2, seq, heads, kv_heads, documents});
    cases.push_back({1, 600, 2, 1, true});
    cases.push_back({1, 600, 2, 1, false});
    cases.push_back({1, 600, 2, 1, false, false, true});
    cases.push_back({1, 131000, 5120 / D * 2, 5120 / D, true, true}); // qkv of 5.4 GB, out of 2.7 GB
    Errors most;
    int failures = !search_is_right();
    for (const Case& c : cases) {
        const Errors e = run(c, 1000 * c.seq + 10 * c.heads + c.kv_heads);
        bool good = true;
        for (auto field : Errors::ALL) {
            good &= e.*field <= bound.*field;
            most.*field = worst(e.*field, most.*field);
        }
        failures += !good;
        if (verbose || !good)
            printf("D %3d seq %3d heads %d/%d %-9s out %.5f lse %.1e delta %.1e dq %.5f dk %.5f dv %.5f exact %.5f%s\n", D, c.seq,
                   c.heads, c.kv_heads, c.documents ? "documents" : "", e.out, e.lse, e.delta, e.dq, e.dk, e.dv, e.exact,
                   good ? "" : "  WRONG");
    }
    printf("D %3d: %zu cases, %d wrong; largest errors out %.5f lse %.1e delta %.1e dq %.5f dk %.5f dv %.5f exact %.5f\n", D,
           cases.size(), failures, most.out, most.lse, most.delta, most.dq, most.dk, most.dv, most.exact);
    printf("D %3d: threads %d %d %d %d, shared memory %d 0 %d %d, rows of delta %d\n", D, FORWARD_THREADS, DELTA_THREADS,
           KV_THREADS, Q_THREADS, FORWARD_SHARED, KV_SHARED, Q_SHARED, DELTA_ROWS);
    return failures != 0;
}

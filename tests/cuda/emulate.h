// A CUDA block on the CPU, for tests of the kernels in crates/core/src/ops/cube/cuda without a GPU: include this file, then the kernels' files.
//
// Every thread of a block is a coroutine; the lanes of a warp meet at each warp-wide instruction (ldmatrix, mma, shuffle,
// ballot), the warps at __syncthreads. The instructions are written from the PTX ISA 8.x ("Warp-level matrix instructions":
// fragment layouts of mma.m16n8k16 with .bf16 and of ldmatrix .m8n8; "Asynchronous copy": cp.async, commit_group, wait_group),
// not from what the kernels expect of them.
//
// Beyond the result, it checks
//   - every global access: inside a registered buffer, and aligned; outputs are written at most once per element
//   - every shared access: inside the dynamic shared memory, aligned, written before it is read (the memory starts as NaN)
//   - cp.async: data arrive only at the wait_group that waits for them; until then the bytes may not be read or overwritten,
//     and for other threads than the copying one only after the next barrier
//   - races: a word written by one thread and read or written by another one must be separated by __syncthreads, or within a
//     warp __syncwarp. Warps run one after the other, forwards and backwards in turn, so that a race also changes the result.
//   - ldmatrix: the 8 rows of a matrix lie in different banks
//   - wgmma: operands are there, and fenced, when a product is issued; they are read (again) when it is waited for, so that one that
//     is overwritten before gives a wrong result
//   - lanes of a warp that diverge at a warp-wide instruction, and barriers that not all threads reach.
// A failed check prints what happened and aborts. Not emulated: the memory model inside a warp between two instructions that
// synchronise it, the rounding of tensor cores (sums here are exact, then rounded), flushed denormals, time.

#pragma once

#define EMULATED

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct int2 { int x, y; };

namespace emulate {

[[noreturn]] inline void fail(const char* format, ...);

// ---- Coroutines: switch_stack saves the callee-saved registers on the stack, keeps its top in *from, and resumes `to`.

#if !defined(__x86_64__)
#error "emulate.h: write switch_stack for this processor"
#endif
extern "C" void emulate_switch_stack(void** from, void* to);
asm(R"(
.text
.type emulate_switch_stack, @function
emulate_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulate_switch_stack, .-emulate_switch_stack
)");

constexpr int WARP = 32;
constexpr size_t STACK = 128 * 1024;

struct Copy { unsigned at, size, bytes; const void* source; };

// A product of a warpgroup, for the 16 rows of one of its warps.
struct Product { float* d[WARP]; unsigned long long a, b; bool a_down, b_down; };

struct Thread {
    uint3 index;
    unsigned id;
    void* top = nullptr; // saved stack pointer
    bool done = false, at_barrier = false;
    std::vector<Copy> open; // copies not yet committed
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> unfenced; // copies that have arrived, and are not yet visible to wgmma
};

struct Warp {
    std::vector<Product> products; // not yet committed
    std::deque<std::vector<Product>> product_groups;
    int current = 0, arrived = 0, waiting = 0, done = 0;
    const char* kind = nullptr;
    unsigned generation = 0, syncs = 0;
    void* arguments[WARP];
};

// What is known of 4 bytes of shared memory. Times: `block` counts __syncthreads, `warp` also counts __syncwarp.
struct Word {
    int writer = -1, reader = -1; // threads
    unsigned write_block = 0, write_warp = 0, read_block = 0, read_warp = 0;
    bool several = false; // warps read it since the last __syncthreads
    bool pending = false; // cp.async under way
    bool fenced = false; // visible to wgmma
};

struct Buffer { const char* name; const unsigned char* data; size_t size; bool output; std::vector<uint8_t> written; bool readable; };
inline std::vector<Buffer> buffers;

struct Block {
    uint3 index, grid;
    unsigned threads;
    std::vector<Thread> lanes;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<unsigned char[]>> stacks;
    std::vector<unsigned char> shared;
    std::vector<Word> words;
    unsigned barriers = 0;
    uint64_t idle = 0; // switches since something happened
    void* scheduler = nullptr;
    const std::function<void()>* kernel = nullptr;
};
inline thread_local Block* block = nullptr;
inline thread_local Thread* self = nullptr;

inline Warp& my_warp() { return block->warps[self->id / WARP]; }

inline void fail(const char* format, ...) {
    char text[512], where[128] = "";
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (self)
        snprintf(where, sizeof where, " (block %u %u %u, thread %u)", block->index.x, block->index.y, block->index.z, self->id);
    fprintf(stderr, "emulate: %s%s\n", text, where);
    _Exit(1);
}

// ---- Scheduling

inline void resume(void** from, Thread& to) {
    self = &to;
    emulate_switch_stack(from, to.top);
}

// Hands over to the next lane of the warp, or to the scheduler if all wait for the block or are done.
inline void next_lane() {
    Warp& w = my_warp();
    Thread* me = self;
    if (w.waiting + w.done == WARP) {
        emulate_switch_stack(&me->top, block->scheduler);
        return;
    }
    if (++block->idle > 1u << 20) fail("deadlock: some lanes wait at %s, others do not come", w.kind ? w.kind : "a barrier");
    unsigned first = me->id / WARP * WARP;
    do w.current = (w.current + 1) % WARP; while (block->lanes[first + w.current].done);
    Thread& to = block->lanes[first + w.current];
    if (&to != me) resume(&me->top, to);
}

// All lanes of the warp meet; the last one runs `run` on the arguments of all.
template <class F> void together(const char* kind, void* argument, F run) {
    Warp& w = my_warp();
    if (w.arrived == 0) w.kind = kind;
    else if (w.kind != kind) fail("the warp diverges: %s here, %s elsewhere", kind, w.kind);
    w.arguments[self->id % WARP] = argument;
    block->idle = 0;
    if (++w.arrived == WARP) {
        run(w.arguments);
        w.arrived = 0;
        w.kind = nullptr;
        w.generation++;
        return;
    }
    for (unsigned generation = w.generation; w.generation == generation;) next_lane();
}

inline void finish() {
    self->done = true;
    Warp& w = my_warp();
    w.done++;
    block->idle = 0;
    if (!self->open.empty()) fail("copies left uncommitted");
    for (auto& group : self->groups)
        if (!group.empty()) fail("the thread ends with copies under way");
    if (!my_warp().products.empty() || !my_warp().product_groups.empty()) fail("the warp ends with products under way");
    next_lane();
    fail("a finished thread was resumed");
}

inline void entry() {
    (*block->kernel)();
    finish();
}

inline void run_block() {
    Block& b = *block;
    const int warps = (int)b.warps.size();
    for (;;) {
        for (int i = 0; i < warps; i++) {
            Warp& w = b.warps[b.barriers % 2 ? warps - 1 - i : i];
            if (w.done == WARP) continue;
            unsigned first = (unsigned)(&w - b.warps.data()) * WARP;
            while (b.lanes[first + w.current].done) w.current = (w.current + 1) % WARP;
            resume(&b.scheduler, b.lanes[first + w.current]);
            self = nullptr;
        }
        unsigned waiting = 0, done = 0;
        for (Warp& w : b.warps) waiting += w.waiting, done += w.done;
        if (done == b.threads) return;
        if (waiting != b.threads) fail("__syncthreads: %u of %u threads came, %u have ended", waiting, b.threads, done);
        b.barriers++;
        for (Warp& w : b.warps) w.waiting = 0, w.syncs++;
    }
}

// Runs kernel() for every thread of every block; blocks are spread over the CPU's cores.
// With `wanted`, only of those blocks.
inline void launch(dim3 grid, unsigned threads, unsigned shared_size, const std::function<void()>& kernel,
                   const std::function<bool(uint3)>& wanted = nullptr) {
    if (threads % WARP) fail("%u threads", threads);
    std::atomic<uint64_t> next{0};
    const uint64_t count = (uint64_t)grid.x * grid.y * grid.z;
    const auto work = [&] {
        Block b;
        b.grid = grid;
        b.threads = threads;
        b.kernel = &kernel;
        for (unsigned i = 0; i < threads; i++) b.stacks.emplace_back(new unsigned char[STACK]);
        block = &b;
        for (uint64_t i; (i = next++) < count;) {
            b.index = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
            if (wanted && !wanted(b.index)) continue;
            b.shared.assign(shared_size, 0xff); // NaN as bf16 and as float
            b.words.assign((shared_size + 3) / 4, Word());
            b.lanes.assign(threads, Thread());
            b.warps.assign(threads / WARP, Warp());
            b.barriers = 0;
            for (unsigned t = 0; t < threads; t++) {
                b.lanes[t].id = t;
                b.lanes[t].index = {t, 0, 0};
                auto top = (uintptr_t)(b.stacks[t].get() + STACK) / 16 * 16;
                void** frame = (void**)top;
                *--frame = nullptr;        // return address of entry: none; the stack is 16-byte aligned before a call
                *--frame = (void*)&entry;
                for (int r = 0; r < 6; r++) *--frame = nullptr;
                b.lanes[t].top = frame;
            }
            run_block();
        }
        block = nullptr;
    };
    std::vector<std::thread> workers;
    const uint64_t cores = std::max(1u, std::thread::hardware_concurrency());
    for (uint64_t i = 0; i < std::min(count, cores); i++) workers.emplace_back(work);
    for (auto& w : workers) w.join();
}

// ---- Memory

// `once`: fail if a byte is written twice. `readable`: an output may also be read.
inline void add_buffer(const char* name, const void* data, size_t size, bool output, bool once = true, bool readable = false) {
    buffers.push_back({name, (const unsigned char*)data, size, output, std::vector<uint8_t>(output && once ? size : 0), readable});
}

// `bytes`, if not all of `size`, which is the alignment.
inline void check_global(const void* p, size_t size, bool write, size_t bytes = 0) {
    bytes = bytes ? bytes : size;
    if ((uintptr_t)p % size) fail("global access of %zu bytes at %p, not aligned", size, p);
    for (Buffer& b : buffers) {
        if ((const unsigned char*)p < b.data || (const unsigned char*)p >= b.data + b.size) continue;
        size_t offset = (const unsigned char*)p - b.data;
        if (offset + bytes > b.size) fail("access of %zu bytes at %zu of %s (%zu bytes)", bytes, offset, b.name, b.size);
        if (write != b.output && !(b.readable && !write)) fail(write ? "%s is an input, but written" : "%s is an output, but read", b.name);
        if (write && !b.written.empty())
            for (size_t i = offset; i < offset + size; i++)
                if (std::atomic_ref<uint8_t>(b.written[i])++) fail("byte %zu of %s is written twice", i, b.name);
        return;
    }
    fail("global access of %zu bytes outside all buffers", size);
}

inline void check_shared(unsigned at, unsigned size, unsigned alignment) {
    if (at % alignment) fail("shared access of %u bytes at %u", size, at);
    if (at + size > block->shared.size()) fail("shared access of %u bytes at %u of %zu", size, at, block->shared.size());
}

inline void shared_write(unsigned at, unsigned size) {
    check_shared(at, size, size);
    for (unsigned i = at / 4; i < (at + size) / 4; i++) {
        Word& w = block->words[i];
        if (w.pending) fail("shared %u is written while cp.async writes it", 4 * i);
        const auto early = [&](int other, unsigned b, unsigned s, bool several) {
            if (other < 0 || b != block->barriers) return false;
            if (several || other / WARP != (int)self->id / WARP) return true;
            return other != (int)self->id && s == my_warp().syncs;
        };
        if (early(w.reader, w.read_block, w.read_warp, w.several))
            fail("race: shared %u, read by thread %d, is written", 4 * i, w.reader);
        if (early(w.writer, w.write_block, w.write_warp, false))
            fail("race: shared %u is written by thread %d too", 4 * i, w.writer);
        w.writer = (int)self->id, w.write_block = block->barriers, w.write_warp = my_warp().syncs, w.fenced = false;
    }
}

// `reader`: the thread that reads, of the current warp.
inline void shared_read(unsigned at, unsigned size, int reader) {
    check_shared(at, size, size);
    for (unsigned i = at / 4; i < (at + size + 3) / 4; i++) {
        Word& w = block->words[i];
        if (w.pending) fail("shared %u is read before cp.async is waited for", 4 * i);
        if (w.writer < 0) fail("shared %u is read, but was never written", 4 * i);
        if (w.writer != reader && w.write_block == block->barriers &&
            (w.writer / WARP != reader / WARP || w.write_warp == my_warp().syncs))
            fail("race: shared %u, written by thread %d, is read by thread %d", 4 * i, w.writer, reader);
        w.several = w.reader >= 0 && w.read_block == block->barriers && (w.several || w.reader / WARP != reader / WARP);
        w.reader = reader, w.read_block = block->barriers, w.read_warp = my_warp().syncs;
    }
}

// When the data of a cp.async land is anything between its issue and the wait for it. By default they do so at the latest; with
// EMULATE_EARLY at the earliest, where products that are under way still read what they overwrite.
inline const bool copies_land_early = getenv("EMULATE_EARLY") != nullptr;

inline void land(unsigned at, const void* source, unsigned size, unsigned bytes) {
    memset(block->shared.data() + at, 0, size);
    if (bytes) memcpy(block->shared.data() + at, source, bytes);
}

inline void copy_async(unsigned at, const void* source, unsigned size, unsigned bytes) {
    if (bytes > size) fail("cp.async of %u bytes from %u", size, bytes);
    if (bytes) check_global(source, size, false, bytes);
    shared_write(at, size);
    for (unsigned i = at / 4; i < (at + size) / 4; i++) block->words[i].pending = true;
    if (copies_land_early) land(at, source, size, bytes);
    self->open.push_back({at, size, bytes, source});
}

inline float bf16_value(unsigned bits) {
    uint32_t x = bits << 16;
    float f;
    memcpy(&f, &x, 4);
    return f;
}

// Round to nearest, ties to even.
inline unsigned bf16_bits(float f) {
    uint32_t x;
    memcpy(&x, &f, 4);
    if (std::isnan(f)) return 0x7fff;
    return (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

struct Matrices { unsigned* r; unsigned at; };

// ldmatrix .m8n8.x4: lanes 8i..8i+7 give the addresses of rows 0..7 (16 bytes each) of matrix i. Without .trans, register i of
// lane l holds elements (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) of matrix i, the first in the low half; with .trans,
// elements (2 * (l % 4), l / 4) and (2 * (l % 4) + 1, l / 4).
inline void load_matrices(unsigned (&r)[4], unsigned at, bool transposed) {
    Matrices mine{r, at};
    together(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, [&](void** all) {
        const int first = (int)self->id / WARP * WARP;
        uint16_t matrix[4][8][8];
        unsigned banks[4] = {};
        for (int l = 0; l < WARP; l++) {
            unsigned from = ((Matrices*)all[l])->at;
            shared_read(from, 16, first + l);
            banks[l / 8] |= 1u << from / 16 % 8;
            if (l % 8 == 7 && banks[l / 8] != 0xff) fail("ldmatrix: rows of a matrix lie in the same banks");
            memcpy(matrix[l / 8][l % 8], block->shared.data() + from, 16);
        }
        for (int l = 0; l < WARP; l++)
            for (int i = 0; i < 4; i++) {
                int line = l / 4, pair = l % 4 * 2;
                uint16_t low = transposed ? matrix[i][pair][line] : matrix[i][line][pair];
                uint16_t high = transposed ? matrix[i][pair + 1][line] : matrix[i][line][pair + 1];
                ((Matrices*)all[l])->r[i] = low | (unsigned)high << 16;
            }
    });
}

struct Operands { float* c; const unsigned* a; unsigned b[2]; };

// mma.m16n8k16, .bf16: with group = lane / 4 and member = lane % 4,
//   a_i: row = group for i in {0, 1, 4, 5}, else group + 8;  column = 2 * member + (i & 1), + 8 for i >= 4
//   b_i: row = 2 * member + (i & 1), + 8 for i >= 2;         column = group
//   c_i: row = group for i < 2, else group + 8;              column = 2 * member + (i & 1)
inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    Operands mine{c, a, {b0, b1}};
    together("mma", &mine, [](void** all) {
        float a[16][16], b[16][8];
        for (int l = 0; l < WARP; l++) {
            const Operands& o = *(Operands*)all[l];
            const int group = l >> 2, member = l & 3;
            for (int i = 0; i < 8; i++) {
                int row = i == 0 || i == 1 || i == 4 || i == 5 ? group : group + 8;
                a[row][member * 2 + (i & 1) + (i >= 4 ? 8 : 0)] = bf16_value(o.a[i / 2] >> 16 * (i & 1) & 0xffff);
            }
            for (int i = 0; i < 4; i++)
                b[member * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = bf16_value(o.b[i / 2] >> 16 * (i & 1) & 0xffff);
        }
        for (int l = 0; l < WARP; l++) {
            Operands& o = *(Operands*)all[l];
            for (int i = 0; i < 4; i++) {
                int row = (l >> 2) + (i < 2 ? 0 : 8), column = (l & 3) * 2 + (i & 1);
                double sum = o.c[i];
                for (int k = 0; k < 16; k++) sum += (double)a[row][k] * b[k][column];
                o.c[i] = (float)sum;
            }
        }
    });
}

} // namespace emulate

// ---- CUDA's names

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (emulate::self->index)
#define blockIdx (emulate::block->index)
#define gridDim (emulate::block->grid)
#define blockDim (uint3{emulate::block->threads, 1, 1})

using std::max;
using std::min;

inline void __syncthreads() {
    emulate::Warp& w = emulate::my_warp();
    w.waiting++;
    emulate::block->idle = 0;
    for (unsigned barrier = emulate::block->barriers; emulate::block->barriers == barrier;) emulate::next_lane();
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    if (mask != 0xffffffffu) emulate::fail("__syncwarp of a part of the warp");
    emulate::Warp* w = &emulate::my_warp();
    emulate::together("__syncwarp", nullptr, [&](void**) { w->syncs++; });
}

inline float __shfl_xor_sync(unsigned mask, float x, int lanes) {
    struct Value { float in, out; int lanes; } mine{x, 0, lanes};
    if (mask != 0xffffffffu) emulate::fail("shuffle in a part of the warp");
    emulate::together("__shfl_xor_sync", &mine, [](void** all) {
        for (int l = 0; l < emulate::WARP; l++) {
            Value& v = *(Value*)all[l];
            v.out = ((Value*)all[l ^ v.lanes])->in;
        }
    });
    return mine.out;
}

inline unsigned __ballot_sync(unsigned mask, int x) {
    struct Value { int in; unsigned out; } mine{x, 0};
    if (mask != 0xffffffffu) emulate::fail("ballot in a part of the warp");
    emulate::together("__ballot_sync", &mine, [](void** all) {
        unsigned bits = 0;
        for (int l = 0; l < emulate::WARP; l++) bits |= (((Value*)all[l])->in ? 1u : 0u) << l;
        for (int l = 0; l < emulate::WARP; l++) ((Value*)all[l])->out = bits;
    });
    return mine.out;
}

inline int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// ---- The functions of machine.cuh

inline void ldmatrix_x4(unsigned (&r)[4], unsigned at) { emulate::load_matrices(r, at, false); }
inline void ldmatrix_x4_trans(unsigned (&r)[4], unsigned at) { emulate::load_matrices(r, at, true); }
inline void mma_16816(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { emulate::multiply(c, a, b0, b1); }
inline void cp_async_16(unsigned at, const void* source, unsigned bytes) { emulate::copy_async(at, source, 16, bytes); }
inline void cp_async_4(unsigned at, const void* source, unsigned bytes) { emulate::copy_async(at, source, 4, bytes); }

inline void cp_async_commit() {
    emulate::self->groups.push_back(std::move(emulate::self->open));
    emulate::self->open.clear();
}

template <int N> inline void cp_async_wait() {
    emulate::Thread& t = *emulate::self;
    while (t.groups.size() > N) {
        for (const emulate::Copy& c : t.groups.front()) {
            if (!emulate::copies_land_early) emulate::land(c.at, c.source, c.size, c.bytes);
            for (unsigned i = c.at / 4; i < (c.at + c.size) / 4; i++) {
                emulate::Word& w = emulate::block->words[i];
                w.pending = false; // and written now, by this thread
                w.write_block = emulate::block->barriers, w.write_warp = emulate::my_warp().syncs;
            }
            t.unfenced.push_back(c);
        }
        t.groups.pop_front();
    }
}

inline float exp2_fast(float x) { return exp2f(x); }
inline unsigned pack_bf16(float low, float high) { return emulate::bf16_bits(low) | emulate::bf16_bits(high) << 16; }
inline float bits_to_float(unsigned x) { float f; memcpy(&f, &x, 4); return f; }

template <class T> inline T emulated_load(unsigned at) {
    emulate::shared_read(at, sizeof(T), (int)emulate::self->id);
    T x;
    memcpy(&x, emulate::block->shared.data() + at, sizeof(T));
    return x;
}
inline void shared_store_u32(unsigned at, unsigned x) {
    emulate::shared_write(at, 4);
    memcpy(emulate::block->shared.data() + at, &x, 4);
}
inline uint4 shared_load_16(unsigned at) { return emulated_load<uint4>(at); }
inline float2 shared_load_f32x2(unsigned at) { return emulated_load<float2>(at); }
inline int2 shared_load_i32x2(unsigned at) { return emulated_load<int2>(at); }
inline int shared_load_i32(unsigned at) { return emulated_load<int>(at); }

inline uint4 global_load_16(const void* p) { emulate::check_global(p, 16, false); return *(const uint4*)p; }
inline float2 global_load_f32x2(const float* p) { emulate::check_global(p, 8, false); return *(const float2*)p; }
inline unsigned global_load_u32(const void* p) { emulate::check_global(p, 4, false); return *(const unsigned*)p; }
inline unsigned short global_load_bf16(const unsigned short* p) { emulate::check_global(p, 2, false); return *p; }
inline void global_store_f32x2(float* p, float2 x) { emulate::check_global(p, 8, true); memcpy(p, &x, 8); }
inline void global_store_u32(void* p, unsigned x) { emulate::check_global(p, 4, true); memcpy(p, &x, 4); }
inline void global_store_bf16(unsigned short* p, unsigned short x) { emulate::check_global(p, 2, true); *p = x; }
inline float global_load_f32(const float* p) { emulate::check_global(p, 4, false); return *p; }
inline int global_load_i32(const int* p) { emulate::check_global(p, 4, false); return *p; }
inline void global_store_16(void* p, uint4 x) { emulate::check_global(p, 16, true); memcpy(p, &x, 16); }
inline void global_store_f32(float* p, float x) { emulate::check_global(p, 4, true); *p = x; }

#include "emulate_warpgroup.h"

// The machine, for the kernels of this folder: everything that is PTX, or touches shared memory. tests/cuda/emulate.h has the same
// functions for the CPU. `at` is a byte offset into the dynamic shared memory of the block.
//
// NVRTC gets one text: a .cu file says in its first line which files of this folder come before it, and mod.rs puts them together.

typedef unsigned short bf16; // the bits

#ifndef EMULATED

extern __shared__ __align__(128) unsigned char shared_bytes[];

__device__ __forceinline__ unsigned shared_address(unsigned at) {
    return (unsigned)__cvta_generic_to_shared(shared_bytes) + at;
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)) : "memory");
}

// c += a b, with a 16 x 16 (row-major fragment), b 16 x 8 (column-major fragment).
__device__ __forceinline__ void mma_16816(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies the first `bytes` (0 or 16) of 16, and fills the rest with zeros.
__device__ __forceinline__ void cp_async_16(unsigned at, const void* source, unsigned bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(at)), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_4(unsigned at, const void* source, unsigned bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(at)), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's newest groups are under way.
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ float bits_to_float(unsigned x) { return __uint_as_float(x); }

__device__ __forceinline__ void shared_store_u32(unsigned at, unsigned x) { *(unsigned*)(shared_bytes + at) = x; }
__device__ __forceinline__ uint4 shared_load_16(unsigned at) { return *(const uint4*)(shared_bytes + at); }
__device__ __forceinline__ float2 shared_load_f32x2(unsigned at) { return *(const float2*)(shared_bytes + at); }
__device__ __forceinline__ int2 shared_load_i32x2(unsigned at) { return *(const int2*)(shared_bytes + at); }
__device__ __forceinline__ int shared_load_i32(unsigned at) { return *(const int*)(shared_bytes + at); }

__device__ __forceinline__ uint4 global_load_16(const void* p) { return *(const uint4*)p; }
__device__ __forceinline__ float global_load_f32(const float* p) { return *p; }
__device__ __forceinline__ int global_load_i32(const int* p) { return *p; }
__device__ __forceinline__ void global_store_16(void* p, uint4 x) { *(uint4*)p = x; }
__device__ __forceinline__ void global_store_f32(float* p, float x) { *p = x; }

#endif

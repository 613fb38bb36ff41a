// The machine, for the kernels of this folder: everything that is PTX, or touches shared memory. tests/cuda/emulate.h has the same
// functions for the CPU. `at` is a byte offset into the dynamic shared memory of the block.
//
// NVRTC gets one text: a .cu file says in its first line which files of this folder come before it, and mod.rs puts them together.

typedef unsigned short bf16; // the bits

#ifndef EMULATED

extern __shared__ __align__(1024) unsigned char shared_bytes[];

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
__device__ __forceinline__ float2 global_load_f32x2(const float* p) { return *(const float2*)p; }
__device__ __forceinline__ void global_store_f32x2(float* p, float2 x) { *(float2*)p = x; }
__device__ __forceinline__ unsigned global_load_u32(const void* p) { return *(const unsigned*)p; }
__device__ __forceinline__ void global_store_u32(void* p, unsigned x) { *(unsigned*)p = x; }
__device__ __forceinline__ bf16 global_load_bf16(const bf16* p) { return *p; }
__device__ __forceinline__ void global_store_bf16(bf16* p, bf16 x) { *p = x; }

// ---- Warpgroups (compute capability 9.0): four warps that multiply together, operands in shared memory. A product is under way from
// its issue until the wait for its group.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Orders this thread's earlier accesses to its sums before products on them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Makes what this thread has in shared memory visible to products.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// d += a b for a [64, 16] and b [16, 256], described by `matrix`; A_DOWN, B_DOWN: m or n, and not k, runs along a row in memory.
template <int A_DOWN, int B_DOWN>
__device__ __forceinline__ void wgmma_64x256x16(float (&d)[128], unsigned long long a, unsigned long long b) {
    asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; "
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
                 "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
                 "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
                 "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "
                 "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
                 "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "%128, %129, add, 1, 1, %130, %131; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
                   "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
                   "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
                   "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
                   "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
                   "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
                   "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
                   "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
                   "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
                   "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
                   "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
                   "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
                 : "l"(a), "l"(b), "n"(A_DOWN), "n"(B_DOWN));
}

#endif

#endif

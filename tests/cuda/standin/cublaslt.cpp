// A stand-in for cuBLASLt: finds a kernel for every product whose matrices fit together, launches nothing, and refuses the others with a
// line `PROBLEM ...` in the file that STANDIN_LOG names. The functions are those that recua calls (cuda/cublaslt.rs).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

typedef int Status; // cublasStatus_t
constexpr Status OK = 0, INVALID_VALUE = 7;

struct Product { int compute, scale, transpose_a = 0, transpose_b = 0; };
struct Matrix { int type; uint64_t rows, columns; int64_t stride; };
struct Choice { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
static_assert(sizeof(Choice) == 96);

// Column by column: c [m, n] = op(a) [m, k] op(b) [k, n].
Status fit(const Product& p, const Matrix& a, const Matrix& b, const Matrix& c) {
    const uint64_t m = p.transpose_a ? a.columns : a.rows, k = p.transpose_a ? a.rows : a.columns;
    const uint64_t also_k = p.transpose_b ? b.columns : b.rows, n = p.transpose_b ? b.rows : b.columns;
    const auto strided = [](const Matrix& x) { return x.stride >= (int64_t)x.rows; };
    if (m && n && k && m == c.rows && n == c.columns && k == also_k && a.type == b.type && strided(a) && strided(b) && strided(c)) return OK;
    const char* name = getenv("STANDIN_LOG");
    FILE* log = fopen(name ? name : "/dev/null", "a");
    const auto number = [](uint64_t x) { return (unsigned long)x; };
    fprintf(log, "PROBLEM cuBLASLt: a %lu x %lu (%ld), b %lu x %lu (%ld), c %lu x %lu (%ld), transposed %d %d\n", number(a.rows),
            number(a.columns), (long)a.stride, number(b.rows), number(b.columns), (long)b.stride, number(c.rows), number(c.columns),
            (long)c.stride, p.transpose_a, p.transpose_b);
    fclose(log);
    return INVALID_VALUE;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) Status

API cublasLtCreate(void** library) { return *library = malloc(8), OK; }
API cublasLtMatmulDescCreate(void** p, int compute, int scale) { return *p = new Product{compute, scale}, OK; }
API cublasLtMatmulDescSetAttribute(void* p, int attribute, const void* value, size_t size) {
    if (size != 4 || (attribute != 3 && attribute != 4)) return INVALID_VALUE; // the transpositions of a and b
    int& transpose = attribute == 3 ? ((Product*)p)->transpose_a : ((Product*)p)->transpose_b;
    return memcpy(&transpose, value, 4), OK;
}
API cublasLtMatmulDescDestroy(void* p) { return delete (Product*)p, OK; }
API cublasLtMatrixLayoutCreate(void** x, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return *x = new Matrix{type, rows, columns, stride}, OK;
}
API cublasLtMatrixLayoutDestroy(void* x) { return delete (Matrix*)x, OK; }
API cublasLtMatmulPreferenceCreate(void** p) { return *p = malloc(8), OK; }
API cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return OK; }
API cublasLtMatmulPreferenceDestroy(void* p) { return free(p), OK; }
API cublasLtMatmulAlgoGetHeuristic(void*, void* p, void* a, void* b, void* c, void*, void*, int wanted, Choice* found, int* count) {
    if (Status status = fit(*(Product*)p, *(Matrix*)a, *(Matrix*)b, *(Matrix*)c)) return status;
    memset(found, 0, sizeof *found);
    found->workspace = 1 << 20;
    return *count = wanted > 0, OK;
}
API cublasLtMatmul(void*, void* p, const float*, const void*, void* a, const void*, void* b, const float*, const void*, void* c, void*,
                   void*, const void*, void*, size_t, void*) {
    return fit(*(Product*)p, *(Matrix*)a, *(Matrix*)b, *(Matrix*)c);
}

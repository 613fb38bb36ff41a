// A stand-in for NVIDIA's driver: an H200 that allocates, copies and loads kernels, launches nothing, and refuses what CUDA refuses.
//
// The functions are those that CubeCL 0.10 and recua call. Device memory is host memory that is mapped where it is touched, so that what
// was uploaded can be read back. Checked: the current context, streams, pointers and sizes of copies, grids, blocks and shared memory of
// launches, tensor maps, memory in all. A refusal is a line `PROBLEM ...` in the file that STANDIN_LOG names.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>

namespace {

typedef int Status; // CUresult
typedef unsigned long long Address;

constexpr Status OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500;
constexpr size_t MEMORY = 143167ull << 20, RESERVED = 600ull << 20; // an H200's, and what its context takes
constexpr unsigned SHARED_MOST = 232448, SHARED_PLAIN = 49152;

std::recursive_mutex& lock = *new std::recursive_mutex; // outlives the program's threads
std::map<Address, size_t>& allocations = *new std::map<Address, size_t>;
std::set<void*>& streams = *new std::set<void*>;
size_t used, peak;
unsigned long launches, modules, problems;
thread_local void* context;

FILE* file() {
    static FILE* log = [] {
        const char* name = getenv("STANDIN_LOG");
        return fopen(name ? name : "/dev/null", "a");
    }();
    return log;
}

__attribute__((format(printf, 2, 3))) Status refuse(Status status, const char* format, ...) {
    problems++;
    fputs("PROBLEM ", file());
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file(), format, arguments);
    va_end(arguments);
    fputc('\n', file());
    fflush(file());
    return status;
}

__attribute__((destructor)) void end() {
    fprintf(file(), "END %lu modules, %lu launches, %lu problems, at most %.2f GiB\n", modules, launches, problems, peak / 1073741824.0);
    fflush(file());
}

struct Function {
    std::string name;
    unsigned most_threads = 0; // .maxntid
    unsigned shared = SHARED_PLAIN;
};

struct Module { std::map<std::string, Function> functions; };

Status in_context(const char* what) { return context ? OK : refuse(INVALID_VALUE, "%s: no current context", what); }

Status on_stream(const char* what, void* stream) {
    return streams.count(stream) ? OK : refuse(INVALID_VALUE, "%s: %p is no stream", what, stream);
}

Status inside(const char* what, Address at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return refuse(INVALID_VALUE, "%s: %llx is in no allocation", what, at);
    const auto [start, size] = *--next;
    if (at + bytes > start + size) return refuse(INVALID_VALUE, "%s: %zu bytes at %llx go past %zu at %llx", what, bytes, at, size, start);
    return OK;
}

Status allocate(Address* address, size_t bytes) {
    if (Status status = in_context("allocation")) return status;
    if (!bytes) return refuse(INVALID_VALUE, "allocation of nothing");
    if (used + bytes + RESERVED > MEMORY) return refuse(OUT_OF_MEMORY, "%zu bytes beside %zu", bytes, used);
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return refuse(OUT_OF_MEMORY, "mmap of %zu bytes", bytes);
    *address = (Address)p;
    allocations[*address] = bytes;
    used += bytes;
    if (used > peak) peak = used;
    return OK;
}

Status release(Address address) {
    const auto found = allocations.find(address);
    if (found == allocations.end()) return refuse(INVALID_VALUE, "%llx is freed, and was not allocated", address);
    munmap((void*)address, found->second);
    used -= found->second;
    allocations.erase(found);
    return OK;
}

void* handle() { return malloc(16); }

} // namespace

#define API extern "C" __attribute__((visibility("default"))) Status
#define GUARD std::lock_guard<std::recursive_mutex> guard(lock)

API cuInit(unsigned) { return OK; }
API cuDriverGetVersion(int* version) { return *version = 13000, OK; }
API cuDeviceGetCount(int* count) { return *count = 1, OK; }
API cuDeviceGet(int* device, int index) { return *device = index, index ? INVALID_DEVICE : OK; }
API cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "stand-in for an H200"), OK; }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, OK; }
API cuDeviceGetUuid_v2(void* uuid, int) { return memset(uuid, 1, 16), OK; }

API cuDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},                      // threads of a block, in all and by dimension
        {5, 2147483647}, {6, 65535}, {7, 65535},                       // blocks of a grid
        {8, SHARED_PLAIN}, {81, 233472}, {97, SHARED_MOST},            // shared memory of a block, of a multiprocessor, on request
        {10, 32}, {12, 65536}, {16, 132}, {39, 2048},                  // warp, registers, multiprocessors, their threads
        {75, 9}, {76, 0},                                              // compute capability
        {115, 1},                                                      // memory pools
    };
    const auto found = known.find(attribute);
    return *value = found == known.end() ? 0 : found->second, OK;
}

API cuDevicePrimaryCtxRetain(void** c, int) { return *c = (void*)0x1000, OK; }
API cuCtxSetCurrent(void* c) { return context = c, OK; }
API cuCtxGetCurrent(void** c) { return *c = context, OK; }
API cuCtxSynchronize() { return OK; }
API cuCtxRecordEvent(void*, void*) { return OK; }
API cuCtxWaitEvent(void*, void*) { return OK; }

API cuStreamCreate(void** stream, unsigned) {
    GUARD;
    if (Status status = in_context("stream")) return status;
    return streams.insert(*stream = handle()), OK;
}
API cuStreamSynchronize(void*) { return OK; }
API cuStreamDestroy_v2(void*) { return OK; }
API cuStreamWaitEvent(void* stream, void*, unsigned) { GUARD; return on_stream("wait", stream); }
API cuEventCreate(void** event, unsigned) { return *event = handle(), OK; }
API cuEventRecord(void*, void* stream) { GUARD; return on_stream("event", stream); }
API cuEventSynchronize(void*) { return OK; }
API cuEventQuery(void*) { return OK; }
API cuEventDestroy_v2(void* event) { return free(event), OK; }

API cuMemAllocAsync(Address* address, size_t bytes, void* stream) {
    GUARD;
    const Status status = on_stream("allocation", stream);
    return status ? status : allocate(address, bytes);
}
API cuMemAlloc_v2(Address* address, size_t bytes) { GUARD; return allocate(address, bytes); }
API cuMemFreeAsync(Address address, void*) { GUARD; return release(address); }
API cuMemFree_v2(Address address) { GUARD; return release(address); }
API cuMemAllocHost_v2(void** p, size_t bytes) { return *p = malloc(bytes), *p ? OK : OUT_OF_MEMORY; }
API cuMemFreeHost(void* p) { return free(p), OK; }
API cuMemGetInfo_v2(size_t* left, size_t* total) { GUARD; return *total = MEMORY, *left = MEMORY - used, OK; }

API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void*) {
    GUARD;
    const Status status = inside("copy to the device", to, bytes);
    return status ? status : (memcpy((void*)to, from, bytes), OK);
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void*) {
    GUARD;
    const Status status = inside("copy from the device", from, bytes);
    return status ? status : (memcpy(to, (void*)from, bytes), OK);
}
API cuMemsetD8Async(Address at, unsigned char value, size_t bytes, void*) {
    GUARD;
    const Status status = inside("memset", at, bytes);
    return status ? status : (memset((void*)at, value, bytes), OK);
}

struct Place { size_t x, y; unsigned type; const void* host; Address device; void* array; size_t pitch; };
struct Copy2D { Place from, to; size_t width, height; };

API cuMemcpy2DAsync_v2(const Copy2D* copy, void*) {
    GUARD;
    if (copy->width > copy->from.pitch || copy->width > copy->to.pitch || copy->from.pitch >> 31 || copy->to.pitch >> 31)
        return refuse(INVALID_VALUE, "copy of rows of %zu bytes, pitches %zu and %zu", copy->width, copy->from.pitch, copy->to.pitch);
    const unsigned char* at[2];
    const Place* places[2] = {&copy->from, &copy->to};
    for (int i = 0; i < 2; i++) {
        const bool on_device = places[i]->type == 2;
        at[i] = on_device ? (const unsigned char*)places[i]->device : (const unsigned char*)places[i]->host;
        const size_t bytes = copy->height && copy->width ? places[i]->pitch * (copy->height - 1) + copy->width : 0;
        if (on_device && bytes)
            if (Status status = inside("copy of rows", places[i]->device, bytes)) return status;
    }
    for (size_t row = 0; row < copy->height; row++)
        memcpy((unsigned char*)at[1] + row * copy->to.pitch, at[0] + row * copy->from.pitch, copy->width);
    return OK;
}

// The image is PTX, which CubeCL hands over as text.
API cuModuleLoadData(void** module, const void* image) {
    GUARD;
    if (Status status = in_context("module")) return status;
    modules++;
    const std::string text((const char*)image);
    auto* loaded = new Module;
    for (size_t at = 0; (at = text.find(".entry ", at)) != std::string::npos;) {
        at += strlen(".entry ");
        const size_t open = text.find('(', at), close = text.find(')', open), body = text.find('{', close);
        Function f;
        f.name = text.substr(at, text.find_first_of(" \t\n(", at) - at);
        const std::string bounds = text.substr(close, body - close);
        const size_t most = bounds.find(".maxntid");
        unsigned x = 0, y = 1, z = 1;
        if (most != std::string::npos && sscanf(bounds.c_str() + most, ".maxntid %u, %u, %u", &x, &y, &z) > 0) f.most_threads = x * y * z;
        loaded->functions[f.name] = f;
    }
    if (loaded->functions.empty()) return refuse(INVALID_VALUE, "a module without an entry");
    return *module = loaded, OK;
}
API cuModuleGetFunction(void** function, void* module, const char* name) {
    GUARD;
    auto& functions = ((Module*)module)->functions;
    const auto found = functions.find(name);
    if (found == functions.end()) return refuse(NOT_FOUND, "no function %s", name);
    return *function = &found->second, OK;
}
API cuModuleUnload(void*) { return OK; }

API cuFuncSetAttribute(void* function, int attribute, int value) {
    GUARD;
    auto* f = (Function*)function;
    if (attribute != 8) return OK; // 8: dynamic shared memory
    if (value < 0 || (unsigned)value > SHARED_MOST) return refuse(INVALID_VALUE, "%s wants %d bytes of shared memory", f->name.c_str(), value);
    return f->shared = value, OK;
}

API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void**, void**) {
    GUARD;
    launches++;
    const auto* f = (Function*)function;
    const char* name = f->name.c_str();
    if (Status status = in_context(name)) return status;
    if (Status status = on_stream(name, stream)) return status;
    if (!gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535) return refuse(INVALID_VALUE, "%s: grid %u %u %u", name, gx, gy, gz);
    const unsigned long threads = (unsigned long)bx * by * bz;
    if (!threads || threads > 1024 || bz > 64) return refuse(INVALID_VALUE, "%s: block %u %u %u", name, bx, by, bz);
    if (f->most_threads && threads > f->most_threads) return refuse(INVALID_VALUE, "%s: %lu threads, bound %u", name, threads, f->most_threads);
    if (shared > SHARED_PLAIN && shared > f->shared) return refuse(INVALID_VALUE, "%s: %u bytes of shared memory of %u", name, shared, f->shared);
    return OK;
}

API cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t*, int interleave, int swizzle, int, int) {
    GUARD;
    if ((uintptr_t)address % 16) return refuse(INVALID_VALUE, "tensor map at %p", address);
    for (unsigned i = 0; i < rank; i++)
        if (!box[i] || box[i] > 256 || !sizes[i] || sizes[i] > 1ull << 32)
            return refuse(INVALID_VALUE, "tensor map: box %u of %lu", box[i], (unsigned long)sizes[i]);
    for (unsigned i = 0; i + 1 < rank; i++)
        if (strides[i] % 16 || strides[i] >> 40) return refuse(INVALID_VALUE, "tensor map: stride %lu", (unsigned long)strides[i]);
    const unsigned row = box[0] * (type == 6 || type == 9 ? 2 : 4); // float16, bfloat16; else of 32 bits
    const unsigned most = swizzle == 0 ? ~0u : 16u << swizzle;
    if (interleave == 0 && (row % 16 || row > most)) return refuse(INVALID_VALUE, "tensor map: rows of %u bytes, swizzle %d", row, swizzle);
    return memset(map, 0, 128), OK;
}

API cuGetErrorName(int error, const char** name) { return *name = error ? "CUDA_ERROR_OF_THE_STAND_IN" : "CUDA_SUCCESS", OK; }
API cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }
// NVRTC asks the driver for this, and lives without.
API cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }

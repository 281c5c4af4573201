// A CUDA runtime with two H100 that compute nothing, for machines without a GPU.
//
// Preloaded before torch, it answers what torch asks of CUDA. Device memory is host memory, copies
// are real, pinned memory is remembered as pinned, and kernels return without doing anything.
// So torch believes in "cuda:0": devices, dtypes, choice of kernels are real, numbers are not.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

// In place of crt/host_defines.h, which the wheels of CUDA do not bring.
#define __CUDA_API_VERSION_INTERNAL
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __location__(a)
#define __host__
#define __device__
#define CUDARTAPI
#include <driver_types.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define ANSWER(name, arguments) \
  EXPORT int name arguments { return cudaSuccess; }

namespace {

constexpr size_t GIB = 1ull << 30;
constexpr int DEVICES = 2;
thread_local int current_device = 0;

// Allocated ranges by their first byte, and what kind of memory each is.
struct Range {
  size_t bytes;
  cudaMemoryType type;
};
std::mutex lock;
std::map<const char*, Range> ranges;

void remember(const void* start, size_t bytes, cudaMemoryType type) {
  std::lock_guard<std::mutex> guard(lock);
  ranges[static_cast<const char*>(start)] = {bytes, type};
}

void forget(const void* start) {
  std::lock_guard<std::mutex> guard(lock);
  ranges.erase(static_cast<const char*>(start));
}

cudaMemoryType type_of(const void* pointer) {
  std::lock_guard<std::mutex> guard(lock);
  auto place = static_cast<const char*>(pointer);
  auto after = ranges.upper_bound(place);
  if (after == ranges.begin()) return cudaMemoryTypeUnregistered;
  auto [start, range] = *std::prev(after);
  return place < start + range.bytes ? range.type : cudaMemoryTypeUnregistered;
}

int allocate(void** pointer, size_t bytes, cudaMemoryType type) {
  if (posix_memalign(pointer, 4096, bytes ? bytes : 1)) return cudaErrorMemoryAllocation;
  remember(*pointer, bytes, type);
  return cudaSuccess;
}

int release(void* pointer) {
  if (pointer) forget(pointer);
  free(pointer);
  return cudaSuccess;
}

void* new_handle() {
  static char handles[1 << 16];
  static size_t used = 0;
  std::lock_guard<std::mutex> guard(lock);
  return &handles[1 + used++ % (sizeof handles - 1)];
}

int describe(cudaDeviceProp* found) {
  std::memset(found, 0, sizeof *found);
  std::strcpy(found->name, "NVIDIA H100 80GB HBM3 (fake)");
  found->major = 9;
  found->minor = 0;
  found->multiProcessorCount = 132;
  found->warpSize = 32;
  found->totalGlobalMem = 80 * GIB;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->regsPerMultiprocessor = 65536;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerBlockOptin = 227 << 10;
  found->sharedMemPerMultiprocessor = 228 << 10;
  return cudaSuccess;
}

}  // namespace

// Devices
EXPORT int cudaGetDeviceCount(int* count) { return *count = DEVICES, cudaSuccess; }
EXPORT int cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
EXPORT int cudaSetDevice(int device) {
  if (device < 0 || device >= DEVICES) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
EXPORT int cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
EXPORT int cudaDeviceGetAttribute(int* value, int, int) { return *value = 0, cudaSuccess; }
EXPORT int cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
EXPORT int cudaGetDeviceProperties(cudaDeviceProp* found, int) { return describe(found); }
EXPORT int cudaGetDeviceProperties_v2(cudaDeviceProp* found, int) { return describe(found); }
EXPORT int cudaMemGetInfo(size_t* free, size_t* total) {
  *free = 78 * GIB;
  *total = 80 * GIB;
  return cudaSuccess;
}
ANSWER(cudaDeviceSynchronize, ())
ANSWER(cudaGetLastError, ())
ANSWER(cudaPeekAtLastError, ())

// Memory
EXPORT int cudaMalloc(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, cudaMemoryTypeDevice);
}
EXPORT int cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(pointer, bytes, cudaMemoryTypeHost);
}
EXPORT int cudaFree(void* pointer) { return release(pointer); }
EXPORT int cudaFreeHost(void* pointer) { return release(pointer); }
EXPORT int cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  return remember(pointer, bytes, cudaMemoryTypeHost), cudaSuccess;
}
EXPORT int cudaHostUnregister(void* pointer) { return forget(pointer), cudaSuccess; }
EXPORT int cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  std::memset(found, 0, sizeof *found);
  found->type = type_of(pointer);
  found->hostPointer = const_cast<void*>(pointer);
  found->devicePointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
EXPORT int cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
EXPORT int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
EXPORT int cudaMemset(void* to, int value, size_t bytes) {
  return std::memset(to, value, bytes), cudaSuccess;
}
EXPORT int cudaMemsetAsync(void* to, int value, size_t bytes, void*) {
  return std::memset(to, value, bytes), cudaSuccess;
}

// Streams, events, kernels
EXPORT int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
EXPORT int cudaStreamCreateWithPriority(void** stream, unsigned, int) {
  return *stream = new_handle(), cudaSuccess;
}
EXPORT int cudaStreamCreateWithFlags(void** stream, unsigned) {
  return *stream = new_handle(), cudaSuccess;
}
EXPORT int cudaStreamIsCapturing(void*, int* status) { return *status = 0, cudaSuccess; }
EXPORT int cudaStreamGetCaptureInfo(void*, int* status) { return *status = 0, cudaSuccess; }
EXPORT int cudaStreamGetCaptureInfo_v2(void*, int* status) { return *status = 0, cudaSuccess; }
EXPORT int cudaThreadExchangeStreamCaptureMode(int*) { return cudaSuccess; }
EXPORT int cudaEventCreateWithFlags(void** event, unsigned) {
  return *event = new_handle(), cudaSuccess;
}
EXPORT int cudaEventElapsedTime(float* ms, void*, void*) { return *ms = 1, cudaSuccess; }
ANSWER(cudaStreamDestroy, (void*))
ANSWER(cudaStreamQuery, (void*))
ANSWER(cudaStreamSynchronize, (void*))
ANSWER(cudaStreamWaitEvent, (void*, void*, unsigned))
ANSWER(cudaEventRecord, (void*, void*))
ANSWER(cudaEventRecordWithFlags, (void*, void*, unsigned))
ANSWER(cudaEventQuery, (void*))
ANSWER(cudaEventSynchronize, (void*))
ANSWER(cudaEventDestroy, (void*))
EXPORT int cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, void*) { return cudaSuccess; }
ANSWER(cudaLaunchKernelExC, (const void*, const void*, void**))
ANSWER(cudaFuncSetAttribute, (const void*, int, int))
EXPORT int cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  return std::memset(found, 0, sizeof *found), cudaSuccess;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 1, cudaSuccess;
}

// The driver, which torch opens as libcuda.so.1 (this library carries that name as well) or asks the
// runtime for. What is not here does nothing, too.
ANSWER(do_nothing, ())
EXPORT int cudaGetDriverEntryPointByVersion(
    const char* name, void** found, unsigned, unsigned long long, int* status) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found) *found = reinterpret_cast<void*>(&do_nothing);
  if (status) *status = 0;
  return cudaSuccess;
}
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
EXPORT int cuGetErrorString(int, const char** text) { return *text = "fake", 0; }

// torch counts devices by asking the driver for its version first.
namespace c10::cuda {
#define VISIBLE __attribute__((visibility("default")))
VISIBLE signed char device_count() noexcept { return DEVICES; }
VISIBLE signed char device_count_ensure_non_zero() { return DEVICES; }
VISIBLE bool hasPrimaryContext(signed char) { return true; }
}  // namespace c10::cuda

// The functions of the CUDA runtime that torch calls, with the memory of the host as that of the device.
//
// Loaded before libcudart, and in place of the driver. Everything runs in the thread that calls it, so all streams are always idle, and events only
// keep the time. While a stream is captured, kernels.cpp runs each kernel once, for the shapes of its results, and gives
// two functions: one that runs it again, for each launch of the graph, and one that restores what it has written, since
// a capture runs nothing.

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

using Action = std::function<void()>;

struct Graph {
    std::vector<Action> launch;   // in the order of the capture
    std::vector<Action> restore;  // run in the opposite order
};
struct CUstream_st {
    Graph* graph = nullptr;  // while it is captured
    bool invalid = false;    // an operation has failed that no graph may hold
    unsigned long long capture = 0;
    int priority = 0;
};
struct CUevent_st {
    std::chrono::steady_clock::time_point recorded;
};

namespace {

struct Block {
    size_t size;
    bool on_device;
};

std::mutex mutex;
std::map<const char*, Block> blocks;  // of device memory, and of pinned memory of the host
size_t device_memory_used = 0;
unsigned long long captures = 0;
thread_local int current_device = 0;
thread_local int captures_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;

size_t number_from(const char* variable, size_t otherwise) {
    const char* value = std::getenv(variable);
    return value ? std::strtoull(value, nullptr, 10) : otherwise;
}

size_t device_memory() {
    static const size_t bytes = number_from("EMULATED_CUDA_BYTES", size_t(8) << 30);
    return bytes;
}

cudaError_t fail(cudaError_t error) { return last_error = error; }

// Waiting for a stream that is captured makes its graph invalid.
cudaError_t wait_for(cudaStream_t stream) {
    if (!stream || !stream->graph) return cudaSuccess;
    stream->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
}

// So does waiting for the whole device, as of torch's captures: in their own thread only.
cudaError_t wait_for_device() {
    return captures_of_thread ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t allocate(void** pointer, size_t size, bool on_device) {
    std::lock_guard<std::mutex> lock(mutex);
    *pointer = nullptr;
    const bool fits = !on_device || device_memory_used + size <= device_memory();
    if (!fits || posix_memalign(pointer, 4096, size ? size : 1)) return fail(cudaErrorMemoryAllocation);
    if (on_device) {
        std::memset(*pointer, 0xff, size);  // NaN: nothing may be read before it is written
        device_memory_used += size;
    }
    blocks[static_cast<char*>(*pointer)] = {size, on_device};
    return cudaSuccess;
}

cudaError_t release(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto block = blocks.find(static_cast<char*>(pointer));
    if (block == blocks.end()) return pointer ? fail(cudaErrorInvalidValue) : cudaSuccess;
    if (block->second.on_device) device_memory_used -= block->second.size;
    blocks.erase(block);
    std::free(pointer);
    return cudaSuccess;
}

// Write now, and with each launch of the graph if the stream is captured.
void write_by(cudaStream_t stream, void* target, size_t size, Action write) {
    if (stream && stream->graph) {
        const std::string before(static_cast<char*>(target), size);
        stream->graph->launch.push_back(write);
        stream->graph->restore.push_back([=] { std::memcpy(target, before.data(), size); });
    }
    write();
}

// Load kernels.cpp, which lies next to this library, once torch is loaded.
void load_kernels() {
    static bool loaded = false;
    if (loaded || !dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD)) return;
    loaded = true;
    Dl_info library;
    dladdr(reinterpret_cast<void*>(load_kernels), &library);
    const std::string path = library.dli_fname;
    const std::string kernels = path.substr(0, path.rfind('/')) + "/libkernels.so";
    if (!dlopen(kernels.c_str(), RTLD_NOW)) {
        std::fprintf(stderr, "the emulated CUDA device has no kernels: %s\n", dlerror());
        std::abort();
    }
}

int do_nothing() { return 0; }

}  // namespace

// For kernels.cpp.

EXPORT bool emulated_cuda_captures(cudaStream_t stream) { return stream && stream->graph && !stream->invalid; }

EXPORT void emulated_cuda_record(cudaStream_t stream, const Action& launch) {
    stream->graph->launch.push_back(launch);
}

EXPORT void emulated_cuda_restore(cudaStream_t stream, const Action& restore) {
    stream->graph->restore.push_back(restore);
}

// Devices.

// torch calls it first.
EXPORT cudaError_t cudaGetDeviceCount(int* count) {
    load_kernels();
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    const bool hidden = visible && !*visible;
    *count = hidden ? 0 : static_cast<int>(number_from("EMULATED_CUDA_DEVICES", 1));
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::memset(properties, 0, sizeof *properties);
    std::strcpy(properties->name, "emulated CUDA");
    properties->totalGlobalMem = device_memory();
    properties->major = 9;
    properties->multiProcessorCount = 16;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 0, cudaSuccess; }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() { return wait_for_device(); }
// Functions of the driver that torch looks up and does not need.
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char*, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    *function = reinterpret_cast<void*>(do_nothing);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// Errors.

EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
EXPORT const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorNoKernelImageForDevice: return "a kernel of CUDA was launched, which kernels.cpp has not replaced";
        default: return "not part of the emulated CUDA runtime";
    }
}

// Memory.

EXPORT cudaError_t cudaMalloc(void** pointer, size_t size) { return allocate(pointer, size, true); }
EXPORT cudaError_t cudaFree(void* pointer) { return release(pointer); }
EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) { return allocate(pointer, size, false); }
EXPORT cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
EXPORT cudaError_t cudaHostRegister(void* pointer, size_t size, unsigned) {
    std::lock_guard<std::mutex> lock(mutex);
    blocks[static_cast<char*>(pointer)] = {size, false};
    return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex);
    blocks.erase(static_cast<char*>(pointer));
    return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    std::lock_guard<std::mutex> lock(mutex);
    auto block = blocks.upper_bound(static_cast<const char*>(pointer));
    if (block == blocks.begin()) return cudaSuccess;
    --block;
    if (pointer >= block->first + block->second.size) return cudaSuccess;
    attributes->type = block->second.on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    std::lock_guard<std::mutex> lock(mutex);
    *total = device_memory();
    *free = *total - device_memory_used;
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* target, const void* source, size_t size, cudaMemcpyKind) {
    if (const cudaError_t error = wait_for_device()) return error;
    std::memcpy(target, source, size);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(
    void* target, const void* source, size_t size, cudaMemcpyKind, cudaStream_t stream) {
    write_by(stream, target, size, [=] { std::memmove(target, source, size); });
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* target, int value, size_t size) {
    std::memset(target, value, size);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* target, int value, size_t size, cudaStream_t stream) {
    write_by(stream, target, size, [=] { std::memset(target, value, size); });
    return cudaSuccess;
}

// Streams and events.

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
    *stream = new CUstream_st;
    (*stream)->priority = priority;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
    return *priority = stream ? stream->priority : 0, cudaSuccess;
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return wait_for(stream); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for(stream); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = new CUevent_st, cudaSuccess;
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t, unsigned) {
    event->recorded = std::chrono::steady_clock::now();
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return wait_for_device(); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait_for_device(); }
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->recorded - start->recorded).count();
    return cudaSuccess;
}

// Graphs.

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream) return fail(cudaErrorStreamCaptureUnsupported);  // the default stream
    stream->graph = new Graph;
    stream->invalid = false;
    stream->capture = ++captures;
    ++captures_of_thread;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    std::vector<Action>& restore = stream->graph->restore;
    for (auto action = restore.rbegin(); action != restore.rend(); ++action) (*action)();
    restore.clear();
    --captures_of_thread;
    *graph = stream->invalid ? nullptr : reinterpret_cast<cudaGraph_t>(stream->graph);
    if (stream->invalid) delete stream->graph;
    stream->graph = nullptr;
    return *graph ? cudaSuccess : fail(cudaErrorStreamCaptureInvalidated);
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = !stream || !stream->graph ? cudaStreamCaptureStatusNone
              : stream->invalid         ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
    const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
    cudaStreamIsCapturing(stream, status);
    if (id) *id = stream ? stream->capture : 0;
    if (graph) *graph = stream ? reinterpret_cast<cudaGraph_t>(stream->graph) : nullptr;
    if (nodes) *nodes = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
    return *instance = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t) {
    for (const Action& action : reinterpret_cast<Graph*>(instance)->launch) action();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
    return *count = reinterpret_cast<Graph*>(graph)->launch.size(), cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }  // its instance has the same memory
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) {
    return delete reinterpret_cast<Graph*>(instance), cudaSuccess;
}

// Kernels of CUDA: there are none.

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    std::memset(attributes, 0, sizeof *attributes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
    return fail(cudaErrorNoKernelImageForDevice);
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function)), cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
    return fail(cudaErrorNoKernelImageForDevice);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
    return fail(cudaErrorNoKernelImageForDevice);
}

// The driver, which this library also replaces: torch asks whether a device is in use, and only links to the others.

EXPORT int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }

#define UNUSED(name) \
    EXPORT int name() { return cudaErrorNotSupported; }
UNUSED(cuCtxGetCurrent)
UNUSED(cuCtxSetCurrent)
UNUSED(cuDeviceGet)
UNUSED(cuDeviceGetAttribute)
UNUSED(cuDevicePrimaryCtxRetain)
UNUSED(cuFuncGetAttribute)
UNUSED(cuFuncSetAttribute)
UNUSED(cuFuncSetCacheConfig)
UNUSED(cuGetErrorString)
UNUSED(cuLaunchCooperativeKernel)
UNUSED(cuLaunchKernel)
UNUSED(cuLinkAddData_v2)
UNUSED(cuLinkComplete)
UNUSED(cuLinkCreate_v2)
UNUSED(cuModuleGetFunction)
UNUSED(cuModuleLoad)
UNUSED(cuModuleLoadData)
UNUSED(cuModuleLoadDataEx)
UNUSED(cuModuleUnload)
UNUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
UNUSED(cuPointerGetAttribute)
UNUSED(cuTensorMapEncodeTiled)

// What of libtorch's CUDA half tch does not expose: current streams, graphs, variable-length flash attention, and the
// switches of cuBLAS. Whatever the CUDA driver itself offers is called from Rust (`crates/cuda-runtime/src/driver.rs`),
// so that this file needs no symbol of the CUDA runtime.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <memory>
#include <optional>

#include "guard.h"

using torch_ext::guarded;

// A stream as libtorch names it, and the driver's handle of it.
struct TeStream {
  int64_t id;
  int64_t device_idx;
  void* handle;
};

namespace {

TeStream pack(const c10::cuda::CUDAStream& stream) {
  return TeStream{stream.id(), stream.device_index(), stream.stream()};
}

c10::cuda::CUDAStream unpack(const TeStream& stream) {
  return c10::cuda::CUDAStream::unpack3(
      stream.id, static_cast<c10::DeviceIndex>(stream.device_idx), c10::DeviceType::CUDA);
}

std::optional<at::Tensor> optional(const at::Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::make_optional(*tensor);
}

}  // namespace

extern "C" {

// Makes the device the calling thread's current one, and libtorch ready to use it.
int32_t te_cuda_set_device(int64_t device_idx) {
  return guarded([&] {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device_idx), /*force=*/true);
  });
}

int32_t te_cuda_new_stream(int64_t device_idx, TeStream* out) {
  return guarded([&] {
    *out = pack(c10::cuda::getStreamFromPool(
        /*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device_idx)));
  });
}

int32_t te_cuda_current_stream(int64_t device_idx, TeStream* out) {
  return guarded([&] {
    *out = pack(c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_idx)));
  });
}

int32_t te_cuda_set_current_stream(const TeStream* stream) {
  return guarded([&] { c10::cuda::setCurrentCUDAStream(unpack(*stream)); });
}

// Hands memory that libtorch keeps in reserve back to the device.
int32_t te_cuda_empty_cache() {
  return guarded([&] { c10::cuda::CUDACachingAllocator::emptyCache(); });
}

// A pool of memory that several graphs can share, by its two numbers.
int32_t te_cuda_graph_pool(uint64_t* out) {
  return guarded([&] {
    const auto pool = at::cuda::graph_pool_handle();
    out[0] = pool.first;
    out[1] = pool.second;
  });
}

// Starts to capture what the calling thread enqueues on its current stream.
int32_t te_cuda_graph_begin(const uint64_t* pool, at::cuda::CUDAGraph** out) {
  return guarded([&] {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin({pool[0], pool[1]}, cudaStreamCaptureModeThreadLocal);
    *out = graph.release();
  });
}

// Ends the capture and hands out the driver's handle of the graph, ready to launch.
int32_t te_cuda_graph_end(at::cuda::CUDAGraph* graph, void** exec) {
  return guarded([&] {
    graph->capture_end();
    *exec = graph->raw_cuda_graph_exec();
  });
}

int32_t te_cuda_graph_free(at::cuda::CUDAGraph* graph) {
  return guarded([&] { delete graph; });
}

// libtorch calls the preference experimental whenever it is set. Nothing here rests on more than the program tests.
struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Prefers cuBLASLt without split-K and without sums in reduced precision, or sets libtorch's defaults again.
int32_t te_blas_set_invariant(int32_t invariant) {
  return guarded([&] {
    Quiet quiet;
    const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
    auto& context = at::globalContext();
    context.setBlasPreferredBackend(invariant != 0 ? at::BlasBackend::Cublaslt : at::BlasBackend::Default);
    const bool allow = invariant == 0;
    context.setAllowBF16ReductionCuBLAS(allow, allow);
    context.setAllowFP16ReductionCuBLAS(allow, allow);
  });
}

// Uploads bytes through page-locked memory, asynchronously; libtorch keeps that memory until they are there. They are copied
// by the calling thread alone: libtorch's own copies start a thread on each core for more than 32,768 values.
int32_t te_cuda_send(const void* bytes, int64_t num_bytes, int64_t device_idx, at::Tensor** out) {
  return guarded([&] {
    auto device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_idx));
    auto locked = at::empty({num_bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
    if (num_bytes > 0) std::memcpy(locked.data_ptr(), bytes, static_cast<size_t>(num_bytes));
    *out = new at::Tensor(locked.to(device, /*non_blocking=*/true, /*copy=*/false));
  });
}

// The arguments of `te_flash_varlen` that are not tensors.
struct TeVarlen {
  int64_t max_q;
  int64_t max_k;
  double scale;
  int32_t is_causal;
  // Keys before its own that a query sees; -1 for all.
  int32_t window_left;
};

// Flash attention over packed sequences; `tensors` holds query, key, value, cum_seq_q, cum_seq_k and seqused_k, the
// last of which may be null.
int32_t te_flash_varlen(const at::Tensor* const* tensors, const TeVarlen* varlen, at::Tensor** out) {
  return guarded([&] {
    auto left = varlen->window_left < 0 ? std::nullopt : std::optional<int64_t>(varlen->window_left);
    auto results = at::_flash_attention_forward(
        *tensors[0], *tensors[1], *tensors[2], *tensors[3], *tensors[4], varlen->max_q, varlen->max_k,
        /*dropout_p=*/0.0, varlen->is_causal != 0, /*return_debug_mask=*/false, varlen->scale,
        left, /*window_size_right=*/left ? std::optional<int64_t>(0) : std::nullopt, optional(tensors[5]));
    *out = new at::Tensor(std::move(std::get<0>(results)));
  });
}

}  // extern "C"

// c10d's TCPStore: the meeting point of ranks. Linked to torch_cpu and c10 alone.

#include "guard.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

C10_DECLARE_int(caffe2_log_level);

namespace {

using torch_ext::guarded;
using Store = c10::intrusive_ptr<c10d::TCPStore>;

// Every failure comes back as an exception and is reported by the caller; c10d's own lines, with their stack traces, would
// only repeat it. Who sets the variable wants to see them.
void quiet_once() {
  static const bool done = [] {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
      FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    }
    return true;
  }();
  (void)done;
}

std::string text(const char* bytes, size_t len) { return {bytes, len}; }

void copy_out(const std::vector<uint8_t>& value, uint8_t** out, size_t* out_len) {
  auto* bytes = static_cast<uint8_t*>(std::malloc(value.size() + 1));
  TORCH_CHECK(bytes != nullptr, "no memory for a value of ", value.size(), " bytes");
  if (!value.empty()) {
    std::memcpy(bytes, value.data(), value.size());
  }
  *out = bytes;
  *out_len = value.size();
}

}  // namespace

extern "C" {

// `listen_fd` below 0: the server binds `port` itself.
int32_t te_store_open(const char* host, size_t host_len, uint16_t port, bool is_server, int32_t listen_fd,
                      int64_t timeout_ms, void** out, uint16_t* out_port) {
  return guarded([&] {
    quiet_once();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    if (listen_fd >= 0) {
      options.masterListenFd = listen_fd;
    }
    auto store = c10::make_intrusive<c10d::TCPStore>(text(host, host_len), options);
    *out_port = store->getPort();
    *out = new Store(std::move(store));
  });
}

void te_store_close(void* store) { delete static_cast<Store*>(store); }

int32_t te_store_set(void* store, const char* key, size_t key_len, const uint8_t* value, size_t value_len) {
  return guarded([&] {
    (*static_cast<Store*>(store))->set(text(key, key_len), std::vector<uint8_t>(value, value + value_len));
  });
}

// `*found` is 0 when the key was not set in time.
int32_t te_store_get(void* store, const char* key, size_t key_len, int64_t timeout_ms, int32_t* found, uint8_t** out,
                     size_t* out_len) {
  return guarded([&] {
    auto& client = *static_cast<Store*>(store);
    *found = 0;
    try {
      client->wait({text(key, key_len)}, std::chrono::milliseconds(timeout_ms));
    } catch (const c10::DistStoreError&) {
      return;
    }
    copy_out(client->get(text(key, key_len)), out, out_len);
    *found = 1;
  });
}

int32_t te_store_push(void* store, const char* key, size_t key_len, const uint8_t* value, size_t value_len) {
  return guarded([&] {
    (*static_cast<Store*>(store))->queuePush(text(key, key_len), std::vector<uint8_t>(value, value + value_len));
  });
}

// `*found` is 0 when the queue stayed empty.
int32_t te_store_pop(void* store, const char* key, size_t key_len, int64_t timeout_ms, int32_t* found, uint8_t** out,
                     size_t* out_len) {
  return guarded([&] {
    auto& client = *static_cast<Store*>(store);
    *found = 0;
    try {
      client->wait({text(key, key_len)}, std::chrono::milliseconds(timeout_ms));
      copy_out(client->queuePop(text(key, key_len), false), out, out_len);
      *found = 1;
    } catch (const c10::DistQueueEmptyError&) {
    } catch (const c10::DistStoreError&) {
    }
  });
}

int32_t te_store_queue_len(void* store, const char* key, size_t key_len, int64_t* out) {
  return guarded([&] { *out = (*static_cast<Store*>(store))->queueLen(text(key, key_len)); });
}

void te_store_free(uint8_t* bytes) { std::free(bytes); }

}  // extern "C"

// What every entry of the shim shares: no C++ exception crosses into Rust. An entry returns a code; the text of the
// exception waits, per thread, in `te_last_error`.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <exception>
#include <string>

namespace torch_ext {

// The codes of `crates/torch-ext/src/ffi.rs`.
enum Code : int32_t { kOk = 0, kFailed = 1, kOutOfMemory = 2 };

std::string& last_error();

template <typename Body>
int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return kOk;
  } catch (const c10::OutOfMemoryError& error) {
    last_error() = error.what_without_backtrace();
    return kOutOfMemory;
  } catch (const c10::Error& error) {
    last_error() = error.what_without_backtrace();
    return kFailed;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return kFailed;
  } catch (...) {
    last_error() = "an exception of unknown type";
    return kFailed;
  }
}

}  // namespace torch_ext

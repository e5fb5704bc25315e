#include "guard.h"

namespace torch_ext {

std::string& last_error() {
  thread_local std::string text;
  return text;
}

}  // namespace torch_ext

// The text of this thread's last failed entry; valid until its next one.
extern "C" const char* te_last_error() { return torch_ext::last_error().c_str(); }

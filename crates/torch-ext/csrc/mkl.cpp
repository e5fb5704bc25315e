// libtorch's products on the CPU are MKL's, where there is MKL. On some processors they have other bits on one thread
// than on two, unless MKL is told otherwise before its first product: hence at the start of the program.
#include <cstdint>
#include <cstdlib>

// `mkl_cbwr_set`, as libtorch exports it; null in a libtorch without MKL.
extern "C" int mkl_serv_cbwr_set(int mode) __attribute__((weak));

namespace {

constexpr int kAuto = 2;  // MKL_CBWR_AUTO: the processor's own instructions, the same bits on any number of threads

int set_mode() {
  // What the user asks for goes first.
  if (mkl_serv_cbwr_set == nullptr || std::getenv("MKL_CBWR") != nullptr) return 0;
  return mkl_serv_cbwr_set(kAuto);
}

const int32_t code = set_mode();

}  // namespace

// 0, or what MKL answered.
extern "C" int32_t te_mkl_mode() { return code; }

// libtorch's GEMMs on the CPU are MKL's, where there is MKL. On some processors their results depend on the number of
// threads unless MKL's CNR mode is set, which must happen before the first GEMM: hence at the start of the program.
#include <cstdint>
#include <cstdlib>

// `mkl_cbwr_set`, as libtorch exports it; null in a libtorch without MKL.
extern "C" int mkl_serv_cbwr_set(int mode) __attribute__((weak));

namespace {

constexpr int kAuto = 2;  // MKL_CBWR_AUTO: the processor's own instructions, results independent of the number of threads

int set_mode() {
  // What the user asks for goes first.
  if (mkl_serv_cbwr_set == nullptr || std::getenv("MKL_CBWR") != nullptr) return 0;
  return mkl_serv_cbwr_set(kAuto);
}

const int32_t code = set_mode();

}  // namespace

// 0, or what MKL answered.
extern "C" int32_t te_mkl_mode() { return code; }

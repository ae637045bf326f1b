// The text of CUDA errors.
#include "kernels/cuda/cuda_error.h"

namespace phalanx {

void cuda_check(cudaError_t code, const char* call, std::source_location where) {
  check({code == cudaSuccess, where}, call, " failed: ", cudaGetErrorName(code), ", ",
        cudaGetErrorString(code));
}

}  // namespace phalanx

// A kernel that cannot do without spills, 128 live sums in 32 registers: its build must fail, which
// shows that spills of our kernels would be told.
__global__ void __launch_bounds__(1024, 2) spills(float* y, const float* x, int n) {
  float sums[128] = {};
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int j = 0; j < 128; ++j) sums[j] += x[i * 128 + j] * x[threadIdx.x + j];
#pragma unroll
  for (int j = 0; j < 128; ++j) y[threadIdx.x * 128 + j] = sums[j];
}

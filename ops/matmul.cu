// The GEMM's launch: cuBLASLt on a GPU, packed kernels on the CPU, or the row function.
#include "ops/matmul.cuh"
#ifdef ULP_GPU
#include "ops/matmul_gpu.cuh"
#endif

void matmul_here(Gemm s) {
    Factors f = factors_of(s);
    s.scale_a = f.a, s.scale_b = f.b;
    matmul_cpu(s, machine.kernels == Kernels::fast ? CpuKernel::fast : CpuKernel::portable);
}
void matmul(const char* name, const Gemm& s) {
    auto size = [](Elem e) { return format_of(e).bits() / 8.0; };
    double M = s.M, N = s.N, K = s.K, flops = 2 * M * N * K;
    double bytes = M * K * size(s.a.elem) + N * K * size(s.b.elem) + M * N * size(s.out_elem) * (s.accumulate ? 2 : 1);
    Accum n = accumulator;
#ifdef ULP_GPU
    if (machine.gpu && machine.kernels == Kernels::fast && machine.tensor_cores && !n.mbits && matmul_gpu(name, s, bytes, flops)) return;
#endif
    if (machine.gpu || machine.kernels == Kernels::reference || !s.a.exact || !s.b.exact)
        for_rows(name, bytes, s.M, [=] HD(Lanes g, int m) { matmul_row(g, s, n, m); }, flops);
    else
        profiled(name, bytes, flops, [&] { matmul_here(s); });
}
void start_matmul_gpu() {
#ifdef ULP_GPU
    lt_start();
#endif
}

// What the numeric tests share: reproducible inputs, and comparisons that say where they failed.
#pragma once
#include "check.h"
#include "run/random.h"
#include <cmath>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

// This many OpenMP threads while it lives; without OpenMP there is one.
struct Threads {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    explicit Threads(int n) { omp_set_num_threads(n); }
    ~Threads() { omp_set_num_threads(before); }
#else
    explicit Threads(int) {}
    ~Threads() {}
#endif
    Threads(const Threads&) = delete;
};
// n draws from normal(mean, sigma), a pure function of the seed, stored as T
template <class T> std::vector<T> normals(size_t n, uint64_t seed, double sigma = 1, double mean = 0) {
    std::vector<T> x(n);
    for (size_t i = 0; i < n; i++) x[i] = T((float)(mean + sigma * random_normal(seed, i)));
    return x;
}
// At most `most` indices below n, spread out, the first and the last among them.
inline std::vector<size_t> sample(size_t n, size_t most) {
    std::vector<size_t> at;
    for (size_t k = 0; k < std::min(n, most); k++) at.push_back(n <= most ? k : k * (n - 1) / (most - 1));
    return at;
}
// |got[i] - want[i]| <= bound[i] for every i; NaN fails. Returns the largest share of a bound that was used.
template <class G, class W>
double check_close(const std::string& what, const G& got, const W& want, const std::vector<double>& bound) {
    REQUIRE(got.size() == want.size());
    REQUIRE(got.size() == bound.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        double g = (double)got[i], w = (double)want[i], off = std::fabs(g - w);
        if (off <= bound[i]) {
            if (off > 0) worst = std::max(worst, off / bound[i]);
            continue;
        }
        FAIL_CHECK(what << "[" << i << "] of " << got.size() << ": got " << g << ", want " << w << " +- " << bound[i]);
        return INFINITY;
    }
    CHECK(worst <= 1);
    return worst;
}
template <class T> void check_same_bits(const std::string& what, const std::vector<T>& a, const std::vector<T>& b) {
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); i++)
        if (memcmp(&a[i], &b[i], sizeof(T))) {
            FAIL_CHECK(what << "[" << i << "] of " << a.size() << ": " << (double)a[i] << " and " << (double)b[i]);
            return;
        }
    CHECK(true);
}

// A counter-based generator: every draw is a pure function of (key, counter), so nothing has to be replayed or saved.
#pragma once
#include <cmath>
#include <cstdint>

// 64 bits for counter n of the stream `key`: two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014).
inline uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
inline uint64_t random_bits(uint64_t key, uint64_t n) {
    return mix64(mix64(n + 0x9e3779b97f4a7c15u) ^ (key * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du));
}
// Uniform in [0, 1), a multiple of 2^-53.
inline double random_uniform(uint64_t key, uint64_t n) { return (double)(random_bits(key, n) >> 11) * 0x1p-53; }
// Standard normal (Box and Muller 1958).
inline double random_normal(uint64_t key, uint64_t n) {
    double u = 1 - random_uniform(key, 2 * n), v = random_uniform(key, 2 * n + 1);
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

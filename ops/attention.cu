// Attention, compiled once, in the time that a compiler takes for the others together.
#include "ops/kv_cache.cuh"

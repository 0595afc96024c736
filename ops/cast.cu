// The casts of fp8.cuh, compiled here and linked wherever they are called.
#include "fp8.cuh"
ULP_CASTS(, act)

// The operations that ops.cuh declares, but attention, compiled once.
#include "ops/adamw.cuh"
#include "ops/classifier.cuh"
#include "ops/elementwise.cuh"
#include "ops/embedding.cuh"
#include "ops/gelu.cuh"
#include "ops/layernorm.cuh"
#include "ops/measure.cuh"
#include "ops/scales.cuh"

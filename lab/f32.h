// The model's gradients in FP32, whatever this build stores activations in: what recipes are measured against.
#pragma once
#include "run/config.h"
#include "run/data.h"
#include <vector>

// Of the first B windows of T tokens; weights: the FP32 masters, (rows, cols) each, in the order of for_each_param.
// Sets dw to the weight gradients of all linears, (OC, C) each, in the order of for_each_linear; returns the mean loss.
// On the CPU, in memory of its own.
double f32_gradients(std::vector<std::vector<float>>& dw, Config config, const std::vector<const float*>& weights,
                     const Batches& batches, int B, int T);

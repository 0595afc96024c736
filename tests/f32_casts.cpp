// Casts of FP32, in the program whose activations are FP32.
#include "test_casts.cpp"

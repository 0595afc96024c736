// GPT-2 checkpoints of llm.c, FILE.bin: 256 little-endian int32 (magic 20240326, version, max_seq_len, vocab_size,
// num_layers, num_heads, channels, padded_vocab_size, the rest unused), then the tensors without gaps, all FP32
// (version 3) or all BF16 (version 5). (Source: write_model() in llm.c's train_gpt2.py.) Easy to get wrong:
// - A tensor of all layers comes before the next one: the weights of every ln_1, then their biases, and so on.
// - Matrices lie as [out, in], as in our memory: nothing is transposed, where the published files are.
// - wte has padded_vocab_size rows; those from vocab_size on are no tokens, and are left out here.
// - Nothing in the file names a tensor, so its size is the only witness that the header is right: it has to agree.
#pragma once
#include "run/safetensors.h"

// The tensors under the published names, as if a safetensors file held them. Every size in the header is checked
// before it is used.
SafetensorsHeader read_llmc(const InFile& file);

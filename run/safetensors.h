// safetensors: 8 bytes, the length N of the header (little-endian); N bytes of JSON
// {"NAME":{"dtype":"F32","shape":[2,3],"data_offsets":[BEGIN,END]}, .., "__metadata__":{"KEY":"TEXT"}}; the data, to
// which the offsets are relative. (Source: the format section of the safetensors README.) Easy to get wrong:
// - The tensors must cover the data exactly: no hole, no overlap, nothing after the last one. Every size in the header
//   is a claim that is checked before it is used; whoever passes the constructor can be read without further ado.
// - Tensors lie in the order of their offsets here, which need not be the order of the header.
// - Data is read when asked for, one tensor at a time: opening a file costs its header only.
#pragma once
#include "run/files.h"
#include <utility>
#include <vector>

using TextMap = std::vector<std::pair<std::string, std::string>>;

// For error messages: tensor "wte.weight" F32 [50257,768]
std::string tensor_text(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape);
int dtype_bits(std::string_view dtype); // of one element; 0: the format has no such type
float float_from_f16(uint16_t h);

struct TensorInfo {
    std::string name, dtype;
    std::vector<int64_t> shape; // row-major; [] is a scalar, a 0 makes it empty
    size_t begin, end;          // bytes, counted from the first byte of the data
    size_t count() const { return (end - begin) * 8 / (size_t)dtype_bits(dtype); }
    std::string text() const { return tensor_text(name, dtype, shape); }
};
struct SafetensorsHeader {
    std::vector<TensorInfo> tensors; // in the order of their data
    TextMap metadata;
    size_t data;   // where the data starts in the file
    int heads = 0; // what only llm.c's files say
};
// Checks everything that can be wrong with a header. start: the first 8 + N bytes of the file, or all that there are;
// path: what errors call it.
SafetensorsHeader parse_safetensors(std::string_view start, size_t file_size, const std::string& path);

struct Safetensors {
    InFile file;
    SafetensorsHeader header;
    explicit Safetensors(const std::string& path);
    Safetensors(const std::string& path, SafetensorsHeader (*read_header)(const InFile&)); // of another format
    const TensorInfo* find(std::string_view name) const;                                   // nullptr if there is none
    // Elements first .. first + n - 1 of an F32, BF16 or F16 tensor as floats (exact); other types are an error.
    void read(float* out, const TensorInfo& t, size_t first, size_t n) const;
    // All of a matrix [R, C] of such a type, as out[C, R].
    void read_transposed(float* out, const TensorInfo& t) const;
};

// What to write. The data is taken as it lies in memory, or, if `transposed` (4-byte elements only), memory holds
// [C, R] where the file shall hold shape = [R, C].
struct TensorOut {
    std::string name, dtype;
    std::vector<int64_t> shape;
    const void* data;
    bool transposed = false;
};
// Larger elements come first in the file, otherwise the given order, so that every tensor is aligned to its elements.
uint64_t write_safetensors(const std::string& path, std::vector<TensorOut> tensors, const TextMap& metadata);

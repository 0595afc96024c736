#include "run/safetensors.h"
#include "run/error.h"
#include "run/json.h"
#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

static_assert(std::endian::native == std::endian::little, "tensors are read and written as they lie in memory");
// Headers of published models have less than 1 MB. The parsed form of one takes up to thirty times its bytes.
static const size_t MAX_HEADER = 16 << 20;
static const size_t CHUNK = 1 << 18; // floats in flight: 1 MiB, within an L2 cache

static const std::pair<const char*, int> dtypes[] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},       {"I16", 16},    {"U32", 32},
    {"I32", 32},    {"U64", 64},    {"I64", 64},        {"F16", 16},       {"BF16", 16},   {"F32", 32},
    {"F64", 64},    {"C64", 64},    {"F4", 4},          {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
int dtype_bits(std::string_view dtype) {
    for (auto [name, bits] : dtypes)
        if (dtype == name) return bits;
    return 0;
}
std::string tensor_text(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape) {
    return "tensor " + quote(name) + " " + (dtype_bits(dtype) ? dtype : quote(dtype)) + " " + Json(shape).dump();
}
// The bytes of a tensor, or none where they are no whole number or do not fit 64 bits.
static std::optional<size_t> tensor_bytes(const std::string& dtype, const std::vector<int64_t>& shape) {
    size_t bits = (size_t)dtype_bits(dtype);
    bool fits = bits > 0;
    for (int64_t d : shape) fits = fits && d >= 0 && !__builtin_mul_overflow(bits, (size_t)d, &bits);
    return fits && bits % 8 == 0 ? std::optional(bits / 8) : std::nullopt;
}

static TensorInfo parse_tensor(const std::string& name, const Json& v, size_t data_bytes, const std::string& where) {
    const Json *dtype = v.find("dtype"), *shape = v.find("shape"), *offsets = v.find("data_offsets");
    auto size = [](const Json& v) { return (size_t)v.integer().value_or(-1); }; // what is no size is >= 2^63
    TensorInfo t{name, dtype ? dtype->text : "", {}, 0, 0};
    auto bad = [&](const std::string& why) { fail("%s: %s: %s", where.c_str(), t.text().c_str(), why.c_str()); };
    if (!dtype || dtype_bits(t.dtype) == 0) bad("\"dtype\" is missing or unknown");
    if (!shape || shape->kind != Json::Array) bad("\"shape\" is missing or no list");
    for (const Json& d : shape->items) t.shape.push_back((int64_t)size(d));
    std::optional<size_t> bytes = tensor_bytes(t.dtype, t.shape);
    if (!bytes) bad("\"shape\" is no list of sizes with a product below 2^64");
    if (!offsets || offsets->kind != Json::Array || offsets->items.size() != 2) bad("\"data_offsets\" is no pair");
    t.begin = size(offsets->items[0]), t.end = size(offsets->items[1]);
    if (t.begin > t.end) bad(format("begins at byte %zu, after its end at %zu", t.begin, t.end));
    if (t.end > data_bytes)
        bad(format("ends at byte %zu, the data at %zu. hint: was the file cut short?", t.end, data_bytes));
    if (*bytes != t.end - t.begin) bad(format("takes %zu bytes, its offsets span %zu", *bytes, t.end - t.begin));
    return t;
}

SafetensorsHeader parse_safetensors(std::string_view start, size_t file_size, const std::string& path) {
    auto bad = [&](const std::string& why) { fail("%s: %s", path.c_str(), why.c_str()); };
    const char* hint = "hint: not a safetensors file, one cut short, or a Git LFS pointer";
    size_t n = 0, covered = 0;
    if (file_size < 8) bad(format("has %zu bytes, the length of the header takes 8. %s", file_size, hint));
    memcpy(&n, start.data(), 8);
    if (n > file_size - 8) bad(format("claims a header of %zu bytes, the file has %zu. %s", n, file_size, hint));
    if (n > MAX_HEADER) bad(format("a header of %zu bytes; at most %zu are read", n, MAX_HEADER));
    if (n == 0 || start[8] != '{') bad(format("the header does not begin with '{'. %s", hint));
    Json json = parse_json(start.substr(8, n), path + ": header");
    SafetensorsHeader h{{}, {}, 8 + n};
    for (size_t k = 0; k < json.keys.size(); k++) {
        const Json& v = json.items[k];
        if (json.keys[k] != "__metadata__") {
            h.tensors.push_back(parse_tensor(json.keys[k], v, file_size - h.data, path));
            continue;
        }
        for (size_t m = 0; m < v.items.size() && m < v.keys.size(); m++)
            if (v.items[m].kind == Json::String) h.metadata.emplace_back(v.keys[m], v.items[m].text);
        if (v.kind != Json::Object || h.metadata.size() < v.items.size())
            bad("\"__metadata__\" must map texts to texts");
    }
    std::sort(h.tensors.begin(), h.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); // an empty one before the one that begins there
    });
    for (const TensorInfo& t : h.tensors) {
        if (t.begin < covered) bad(t.text() + format(" begins at byte %zu, inside the one before it", t.begin));
        if (t.begin > covered)
            bad(t.text() + format(" begins at byte %zu, and no tensor holds byte %zu", t.begin, covered));
        covered = t.end;
    }
    if (covered != file_size - h.data) bad(format("%zu bytes follow the last tensor", file_size - h.data - covered));
    return h;
}

static SafetensorsHeader read_header(const InFile& f) {
    size_t n = 0;
    if (f.size >= 8) f.read(&n, 0, 8);
    std::string start(std::min(f.size, n > MAX_HEADER ? 8 : 8 + n), '\0');
    f.read(start.data(), 0, start.size());
    return parse_safetensors(start, f.size, f.path);
}
Safetensors::Safetensors(const std::string& path) : Safetensors(path, read_header) {}
Safetensors::Safetensors(const std::string& path, SafetensorsHeader (*read_header)(const InFile&))
    : file(path), header(read_header(file)) {}
const TensorInfo* Safetensors::find(std::string_view name) const {
    for (const TensorInfo& t : header.tensors)
        if (t.name == name) return &t;
    return nullptr;
}

// Integer code, so that no NaN is made quiet on the way and the payload stays.
float float_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, em = h & 0x7fff;
    uint32_t tiny = std::bit_cast<uint32_t>((float)em * 0x1p-24f); // subnormal: em units of 2^-24, exact
    uint32_t rest = (em << 13) + ((em < 0x7c00 ? 112u : 224u) << 23);
    return std::bit_cast<float>(sign | (em < 0x400 ? tiny : rest));
}
static void decode(float* out, const uint16_t* in, size_t n, bool bf16) {
    if (bf16)
        for (size_t i = 0; i < n; i++) out[i] = std::bit_cast<float>((uint32_t)in[i] << 16);
    else
        for (size_t i = 0; i < n; i++) out[i] = float_from_f16(in[i]);
}
void Safetensors::read(float* out, const TensorInfo& t, size_t first, size_t n) const {
    size_t at = header.data + t.begin;
    if (t.dtype == "F32") return file.read(out, at + first * 4, n * 4);
    if (t.dtype != "BF16" && t.dtype != "F16")
        fail("%s: %s: F32, BF16 or F16 is expected", file.path.c_str(), t.text().c_str());
    std::vector<uint16_t> codes(std::min(n, CHUNK));
    for (size_t i = 0, m; i < n; i += m) {
        m = std::min(CHUNK, n - i);
        file.read(codes.data(), at + (first + i) * 2, m * 2);
        decode(out + i, codes.data(), m, t.dtype == "BF16");
    }
}

// out[c * out_stride + r] = in[r * in_stride + c]. What costs is touching a page for one line of it: tiles of 64 x 8
// leave whole lines on the side that is written, which is the dearer one. (768 x 3072: 1.9 GB/s; 16 x 16: 1.0.)
static void transpose(float* out, size_t out_stride, const float* in, size_t in_stride, size_t R, size_t C) {
    for (size_t c0 = 0; c0 < C; c0 += 8)
        for (size_t r0 = 0; r0 < R; r0 += 64)
            for (size_t c = c0; c < std::min(c0 + 8, C); c++)
                for (size_t r = r0; r < std::min(r0 + 64, R); r++) out[c * out_stride + r] = in[r * in_stride + c];
}
// As many rows of C elements, in sixteens, as a chunk takes.
static size_t panel_rows(size_t R, size_t C) { return std::min(R, std::max<size_t>(CHUNK / (C + 1) / 16 * 16, 16)); }

void Safetensors::read_transposed(float* out, const TensorInfo& t) const {
    if (t.shape.size() != 2) fail("%s: %s is no matrix", file.path.c_str(), t.text().c_str());
    size_t R = (size_t)t.shape[0], C = (size_t)t.shape[1], P = panel_rows(R, C);
    std::vector<float> panel(P * C);
    for (size_t r = 0; r < R && C > 0; r += P) { // [2^58, 0] is a legal shape
        size_t rows = std::min(P, R - r);
        read(panel.data(), t, r * C, rows * C);
        transpose(out + r, R, panel.data(), C, rows, C);
    }
}

uint64_t write_safetensors(const std::string& path, std::vector<TensorOut> tensors, const TextMap& metadata) {
    std::stable_sort(tensors.begin(), tensors.end(),
                     [](const TensorOut& a, const TensorOut& b) { return dtype_bits(a.dtype) > dtype_bits(b.dtype); });
    Json header(Json::Object), texts(Json::Object);
    for (auto& [key, text] : metadata) texts.set(key, text);
    if (!metadata.empty()) header.set("__metadata__", texts);
    std::vector<size_t> ends = {0}; // tensor k: ends[k] .. ends[k + 1] - 1
    for (const TensorOut& t : tensors) {
        std::optional<size_t> bytes = tensor_bytes(t.dtype, t.shape);
        if (!bytes || header.find(t.name) || (t.transposed && (dtype_bits(t.dtype) != 32 || t.shape.size() != 2)))
            fail("%s: %s cannot be written", path.c_str(), tensor_text(t.name, t.dtype, t.shape).c_str());
        ends.push_back(ends.back() + *bytes);
        std::vector<size_t> offsets(ends.end() - 2, ends.end());
        header.set(t.name, Json(Json::Object).set("dtype", t.dtype).set("shape", t.shape).set("data_offsets", offsets));
    }
    std::string text = header.dump();
    size_t n = (text.size() + 7) / 8 * 8; // padded, so that the data is aligned where the file is mapped
    text.resize(n, ' ');
    OutFile f(path);
    f.write(&n, 8);
    f.write(text.data(), n);
    for (size_t k = 0; k < tensors.size(); k++) {
        const TensorOut& t = tensors[k];
        if (!t.transposed) f.write(t.data, ends[k + 1] - ends[k]);
        size_t R = t.transposed ? (size_t)t.shape[0] : 0, C = t.transposed ? (size_t)t.shape[1] : 0,
               P = panel_rows(R, C);
        std::vector<float> panel(P * C);
        for (size_t r = 0; r < R; r += P) {
            size_t rows = std::min(P, R - r);
            transpose(panel.data(), C, (const float*)t.data + r, R, C, rows);
            f.write(panel.data(), rows * C * 4);
        }
    }
    return f.commit();
}

// What nvcc makes of row functions, where there is an nvcc: rows move in packs, four elements a load, and casts are the
// chip's own conversions where it has them.
#include "check.h"
#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>
#include <stdlib.h>

namespace { // test files share one program

namespace fs = std::filesystem;
static std::string find_nvcc() {
    std::istringstream path(std::string(getenv("PATH") ? getenv("PATH") : "") + ":/usr/local/cuda/bin");
    for (std::string dir; std::getline(path, dir, ':');)
        if (fs::exists(fs::path(dir) / "nvcc")) return fs::path(dir) / "nvcc";
    return "";
}
static std::string contents(const fs::path& file) {
    std::ostringstream s;
    s << std::ifstream(file).rdbuf();
    return s.str();
}
struct Scratch {
    fs::path dir;
    Scratch() {
        std::string name = fs::temp_directory_path() / "ulp-ptx-XXXXXX";
        REQUIRE(mkdtemp(name.data()));
        dir = name;
    }
    ~Scratch() { fs::remove_all(dir); }
};
// the PTX; where nvcc fails, what it says
static std::string compile(const std::string& nvcc, const fs::path& source, const std::string& arch) {
    std::string root = fs::absolute(__FILE__).parent_path().parent_path();
    std::string out = source.string() + "." + arch, flags = " -std=c++20 -O3 -fmad=false --extended-lambda "
                                                            "--expt-relaxed-constexpr -I";
    std::string command = nvcc + " -ptx -arch=" + arch + flags + root + " -o " + out + " " + source.string();
    int status = system((command + " >" + out + ".log 2>&1").c_str());
    return status == 0 ? contents(out) : command + "\n" + contents(out + ".log");
}
// lines that hold the word and one of the types
static int count(const std::string& ptx, const char* word, std::initializer_list<const char*> types) {
    std::istringstream lines(ptx);
    int n = 0;
    for (std::string line; std::getline(lines, line);)
        for (const char* type : types)
            n += line.find(word) != std::string::npos && line.find(type) != std::string::npos;
    return n;
}

TEST_CASE("nvcc moves LayerNorm's rows in packs: 8-byte loads and stores of BF16, 16-byte loads of FP32") {
    std::string nvcc = find_nvcc();
    if (nvcc.empty()) SKIP("no nvcc, so the PTX of LayerNorm was not looked at");
    Scratch scratch;
    std::ofstream(scratch.dir / "a.cu") << R"(#include "ops/layernorm.cuh")";
    std::string ptx = compile(nvcc, scratch.dir / "a.cu", "sm_90");
    REQUIRE_MESSAGE(ptx.find(".target sm_90") != std::string::npos, ptx);
    auto bf16 = {".v4.u16", ".v4.b16", ".v2.u32", ".v2.b32"}, fp32 = {".v4.f32", ".v4.b32"};
    struct {
        std::string launcher;
        int loads, stores, fp32; // rows that its verbs read and write
    } kernels[] = {{"layernorm_forward", 3, 1, 2}, {"layernorm_backward", 6, 1, 3}};
    for (auto& k : kernels) {
        std::string body; // of the launcher's kernel of rows that stores rows; a fused cast leaves others without
        for (size_t at = ptx.find(".entry"), end; at != std::string::npos && body.empty(); at = end) {
            end = ptx.find(".entry", at + 1);
            std::string name = ptx.substr(at, ptx.find('\n', at) - at), its = ptx.substr(at, end - at);
            bool rows = name.find(k.launcher) != std::string::npos && name.find("rows_kernel") != std::string::npos;
            if (rows && count(its, "st.global", bf16)) body = its;
        }
        REQUIRE(!body.empty());
        CHECK_MESSAGE(count(body, "ld.global", bf16) >= k.loads, k.launcher);
        CHECK_MESSAGE(count(body, "st.global", bf16) >= k.stores, k.launcher);
        CHECK_MESSAGE(count(body, "ld.global", fp32) >= k.fp32, k.launcher);
    }
}

TEST_CASE("nvcc casts with the conversions a chip has: FP8 from sm_89 on; FP6, FP4 and E8M0 on sm_100f and sm_120f") {
    std::string nvcc = find_nvcc();
    if (nvcc.empty()) SKIP("no nvcc, so the PTX of the casts was not looked at");
    Scratch scratch;
    std::ofstream(scratch.dir / "a.cu") << R"(#include "fp8.cuh"
void use(uint8_t* q, uint8_t* s, float* f, const float* x, Cast c, bool transpose) {
    cast_tensor(q, f, x, f, c, transpose, 64, 64);
    cast_mx(q, s, x, c, transpose, 64, 64);
    cast_nvfp4(q, s, f, f, x, c, transpose, 64, 64);
})";
    const char *fp8[] = {"cvt.rn.satfinite.e4m3x2.f32", "cvt.rn.satfinite.e5m2x2.f32"},
               *fp4[] = {"cvt.rn.satfinite.e2m1x2.f32", "cvt.rn.satfinite.e2m3x2.f32", "cvt.rn.satfinite.e3m2x2.f32",
                         "cvt.rp.ue8m0x2.f32"};
    const struct {
        const char* arch;
        bool fp8, fp4;
    } chips[] = {{"sm_80", false, false}, {"sm_89", true, false}, {"sm_100f", true, true}, {"sm_120f", true, true}};
    std::vector<std::future<std::string>> compiles;
    for (auto& chip : chips)
        compiles.push_back(std::async(std::launch::async, compile, nvcc, scratch.dir / "a.cu", chip.arch));
    for (size_t i = 0; i < compiles.size(); i++) {
        std::string ptx = compiles[i].get();
        std::string arch = chips[i].arch;
        REQUIRE_MESSAGE(ptx.find(".target " + arch) != std::string::npos, ptx);
        for (auto word : fp8) CHECK_MESSAGE((count(ptx, word, {""}) > 0) == chips[i].fp8, (arch + " " + word));
        for (auto word : fp4) CHECK_MESSAGE((count(ptx, word, {""}) > 0) == chips[i].fp4, (arch + " " + word));
    }
}

} // namespace

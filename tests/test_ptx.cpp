// What nvcc makes of a row function, where there is an nvcc: rows move in packs, four elements a load.
#include "check.h"
#include <filesystem>
#include <fstream>
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
    std::string name = fs::temp_directory_path() / "ulp-ptx-XXXXXX";
    REQUIRE(mkdtemp(name.data()));
    struct Remove {
        fs::path dir;
        ~Remove() { fs::remove_all(dir); }
    } scratch{name};
    std::ofstream(scratch.dir / "a.cu") << R"(#include "ops/layernorm.cuh"
void use(act* y, real* f, const act* x, int N, int C) {
    layernorm_forward(y, f, f, x, f, f, N, C);
    layernorm_backward(y, f, f, x, x, f, f, f, f, N, C);
})";
    std::string root = fs::absolute(__FILE__).parent_path().parent_path();
    std::string log = scratch.dir / "log", ptx_file = scratch.dir / "a.ptx";
    std::string command = nvcc +
                          " -ptx -arch=sm_90 -std=c++20 -O3 -fmad=false --extended-lambda --expt-relaxed-constexpr -I" +
                          root + " -o " + ptx_file + " " + (scratch.dir / "a.cu").string() + " >" + log + " 2>&1";
    int status = system(command.c_str());
    REQUIRE_MESSAGE(status == 0, command, "\n", contents(log));

    std::string ptx = contents(ptx_file);
    auto bf16 = {".v4.u16", ".v4.b16", ".v2.u32", ".v2.b32"}, fp32 = {".v4.f32", ".v4.b32"};
    struct {
        std::string launcher;
        int loads, stores, fp32; // rows that its verbs read and write
    } kernels[] = {{"layernorm_forward", 3, 1, 2}, {"layernorm_backward", 6, 1, 3}};
    for (auto& k : kernels) {
        std::string body; // of the first kernel whose name holds the launcher's
        for (size_t at = ptx.find(".entry"), end; at != std::string::npos && body.empty(); at = end) {
            end = ptx.find(".entry", at + 1);
            if (ptx.substr(at, ptx.find('\n', at) - at).find(k.launcher) != std::string::npos)
                body = ptx.substr(at, end - at);
        }
        REQUIRE(!body.empty());
        CHECK_MESSAGE(count(body, "ld.global", bf16) >= k.loads, k.launcher);
        CHECK_MESSAGE(count(body, "st.global", bf16) >= k.stores, k.launcher);
        CHECK_MESSAGE(count(body, "ld.global", fp32) >= k.fp32, k.launcher);
    }
}

} // namespace

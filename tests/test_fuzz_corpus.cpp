#include "check.h"
#include "fuzz/checkpoint.h"
#include "fuzz/files.h"
#include "fuzz/safetensors.h"
#include "fuzz/words.h"
#include <fstream>
#include <iterator>

// A target that does not survive an input aborts the whole program; its last words name the input.
static void run_corpus(const char* target, void (*fuzz)(std::string_view)) {
    int files = 0;
    std::vector<std::filesystem::path> paths;
    for (auto& entry : std::filesystem::directory_iterator(std::string("tests/fuzz/corpus/") + target))
        paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    for (auto& path : paths) {
        std::ifstream in(path, std::ios::binary);
        std::string bytes((std::istreambuf_iterator<char>(in)), {});
        CAPTURE(path);
        CHECK_NOTHROW(fuzz(bytes));
        for (size_t n : {bytes.size() / 3, bytes.size() * 9 / 10}) CHECK_NOTHROW(fuzz(bytes.substr(0, n))); // and cut
        files++;
    }
    CHECK(files >= 10);
}
TEST_CASE("fuzz corpus: safetensors and JSON that once went wrong, or might") {
    run_corpus("safetensors", fuzz_safetensors);
}
TEST_CASE("fuzz corpus: llm.c's files and vocabularies") { run_corpus("files", fuzz_files); }
TEST_CASE("fuzz corpus: command lines, recipes and skip lists") { run_corpus("words", fuzz_words); }
TEST_CASE("fuzz corpus: directories of runs and checkpoints") { run_corpus("checkpoint", fuzz_checkpoint); }

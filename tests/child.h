// Runs code of ours in a child process, in a directory of its own, and reads what it wrote.
#pragma once
#include "check.h"
#include "errors.h"
#include "run/error.h"
#include <filesystem>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <sstream>
#include <sys/wait.h>
#include <unistd.h>

namespace { // test files share one program

namespace fs = std::filesystem;

struct Scratch { // a fresh directory, current while it lives
    fs::path back = fs::current_path(), dir;
    Scratch() {
        char name[] = "/tmp/ulp-child-XXXXXX";
        REQUIRE(mkdtemp(name) != nullptr);
        fs::current_path(dir = name);
    }
    ~Scratch() {
        fs::current_path(back);
        fs::remove_all(dir);
    }
};
static std::string contents(const std::string& path) {
    std::ostringstream text;
    if (fs::is_regular_file(path)) text << std::ifstream(path).rdbuf(); // reading a terminal would wait for a key
    return text.str();
}
// What a child process that runs f wrote to stdout and stderr; its exit status, or minus the signal that ended it.
struct Outcome {
    std::string out, err;
    int status;
};
static Outcome in_child(const std::function<void()>& f, const char* out = "out", const char* err = "err") {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(open(out, O_CREAT | O_TRUNC | O_WRONLY | O_NOCTTY, 0666), 1);
        dup2(open(err, O_CREAT | O_TRUNC | O_WRONLY | O_NOCTTY, 0666), 2);
        f();
        fflush(nullptr);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return {contents(out), contents(err), WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)};
}

} // namespace

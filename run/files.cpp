#include "run/files.h"
#include "run/error.h"
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const size_t AT_ONCE = 1 << 30; // the kernel moves at most 2 GiB per call
static const char* why() { return strerror(errno); }

InFile::InFile(const std::string& path) : path(path), fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat st = {};
    if (fd < 0) fail("%s: cannot open: %s", path.c_str(), why());
    bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    size = (size_t)st.st_size;
    if (!regular) close(fd), fail("%s: not a regular file", path.c_str());
}
InFile::~InFile() { close(fd); }
void InFile::read(void* out, size_t offset, size_t bytes) const {
    for (char* p = (char*)out; bytes > 0;) {
        ssize_t n = pread(fd, p, std::min(bytes, AT_ONCE), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            fail("%s: cannot read %zu bytes at byte %zu: %s", path.c_str(), bytes, offset,
                 n < 0 ? why() : "the file ends there");
        p += n, offset += (size_t)n, bytes -= (size_t)n;
    }
}

OutFile::OutFile(const std::string& path) : path(path) {
    fd = open((path + ".tmp").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) fail("%s.tmp: cannot create: %s", path.c_str(), why());
}
OutFile::~OutFile() {
    if (fd >= 0) close(fd), unlink((path + ".tmp").c_str());
}
void OutFile::write(const void* data, size_t bytes) {
    written.add(data, bytes);
    for (const char* p = (const char*)data; bytes > 0;) {
        ssize_t n = ::write(fd, p, std::min(bytes, AT_ONCE));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("%s.tmp: cannot write %zu more bytes: %s", path.c_str(), bytes, n < 0 ? why() : "no progress");
        p += n, bytes -= (size_t)n;
    }
}
uint64_t OutFile::commit() {
    std::string tmp = path + ".tmp";
    if (fsync(fd) != 0) fail("%s: cannot reach the disk: %s", tmp.c_str(), why());
    if (rename(tmp.c_str(), path.c_str()) != 0) fail("%s: cannot rename from .tmp: %s", path.c_str(), why());
    close(fd);
    fd = -1;
    sync_directory_of(path);
    return written.value();
}

std::string read_file(const std::string& path, size_t at_most) {
    InFile f(path);
    if (f.size > at_most) fail("%s: has %zu bytes, at most %zu are expected", path.c_str(), f.size, at_most);
    std::string text((size_t)f.size, '\0');
    f.read(text.data(), 0, text.size());
    return text;
}
uint64_t write_file(const std::string& path, std::string_view text) {
    OutFile f(path);
    f.write(text.data(), text.size());
    return f.commit();
}
uint64_t fingerprint_of_file(const std::string& path) {
    InFile f(path);
    Fingerprint sum;
    std::string chunk;
    for (size_t at = 0; at < f.size; at += chunk.size()) {
        chunk.resize(std::min<size_t>(f.size - at, 1 << 20));
        f.read(chunk.data(), at, chunk.size());
        sum.add(chunk.data(), chunk.size());
    }
    return sum.value();
}
void sync_directory_of(const std::string& path) {
    size_t slash = path.find_last_of('/');
    std::string dir = slash == path.npos ? "." : path.substr(0, slash + 1);
    int fd = open(dir.c_str(), O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL); // EINVAL: a file system that needs no such thing
    if (fd >= 0) close(fd);
    if (!ok) fail("%s: cannot sync the directory: %s", dir.c_str(), why());
}

// --- fingerprint -------------------------------------------------------------------------------------------------

// Odd, so that multiplying by them is a bijection: the fractions of the golden ratio and of the square root of 2.
static constexpr uint64_t K1 = 0x9E3779B97F4A7C15, K2 = 0x6A09E667F3BCC909;

static void absorb(uint64_t* lanes, const unsigned char* block) { // 32 bytes, as four little-endian words
    for (int i = 0; i < 4; i++) {
        uint64_t word;
        memcpy(&word, block + 8 * i, 8);
        word = lanes[i] ^ word * K1;
        lanes[i] = (word << 31 | word >> 33) * K2;
    }
}
void Fingerprint::add(const void* data, size_t bytes) {
    auto p = (const unsigned char*)data, end = p + bytes;
    for (; p < end && count % 32; count++) {
        tail[count % 32] = *p++;
        if (count % 32 == 31) absorb(lanes, tail);
    }
    uint64_t local[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
    for (; end - p >= 32; p += 32, count += 32) absorb(local, p);
    std::copy(local, local + 4, lanes);
    for (; p < end; count++) tail[count % 32] = *p++;
}
uint64_t Fingerprint::value() const {
    Fingerprint f = *this;
    std::fill(f.tail + count % 32, f.tail + 32, 0);
    absorb(f.lanes, f.tail);
    uint64_t h = count * K2;
    for (uint64_t lane : f.lanes) h = (h ^ lane ^ h >> 32) * K1, h ^= h >> 29;
    return h;
}

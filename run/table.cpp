#include "run/table.h"
#include "run/error.h"
#include "run/files.h"
#include "run/json.h"
#include "run/options.h"
#include "run/screen.h"
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sstream>
#include <unistd.h>
#include <utility>

// --- reading -----------------------------------------------------------------------------------------------------
void Table::bad(size_t line, const std::string& what) const {
    fail("%s: line %zu: %s. hint: was it edited, or written by two runs or by another version?", path.c_str(), line,
         what.c_str());
}
Table read_table(const std::string& path) {
    std::istringstream lines(read_file(path, SIZE_MAX));
    Table t{path, {}, {}};
    std::string text;
    for (size_t n = 1; std::getline(lines, text) && !lines.eof(); n++) { // at eof stands what no newline ends yet
        std::vector<std::string> cells(1);
        for (char c : text)
            if ((c >= 0 && c < ' ') || c == '"') t.bad(n, quote({&c, 1}) + " has no place in a table");
            else if (c == ',') cells.emplace_back();
            else cells.back() += c;
        if (n > 1 && cells.size() != t.columns.size())
            t.bad(n, format("%zu cells under %zu columns", cells.size(), t.columns.size()));
        n > 1 ? t.rows.push_back(cells) : t.columns.swap(cells);
    }
    return t.columns.empty() ? (t.bad(1, "there is no header"), t) : t;
}
size_t Table::column(const std::string& name) const {
    size_t i = std::find(columns.begin(), columns.end(), name) - columns.begin();
    return i < columns.size() ? i : (bad(1, "there is no column " + name), i);
}
double Table::number(size_t row, const std::string& name) const {
    const std::string& cell = text(row, name);
    if (!is_number(cell)) bad(row + 2, quote(cell) + " under " + name + ", where a number belongs");
    return strtod(cell.c_str(), nullptr);
}
int64_t Table::whole(size_t row, const std::string& name) const {
    double v = number(row, name);
    if (!(v >= 0 && v < 1e15 && v == floor(v))) bad(row + 2, text(row, name) + " under " + name);
    return (int64_t)v;
}

// --- writing -----------------------------------------------------------------------------------------------------
[[noreturn]] static void cannot_write(const std::string& path, int why) {
    fail("cannot write %s: %s%s", path.c_str(), strerror(why),
         why == ENOSPC || why == EDQUOT || why == EFBIG ? ". hint: make room there" : "");
}
Csv::Csv(const std::string& path, const std::string& header, const Keep& keep) : path(path), pending(header + "\n") {
    columns = (size_t)std::count(header.begin(), header.end(), ',') + 1;
    bool old = keep && std::filesystem::exists(path) && std::filesystem::file_size(path) > 0;
    if (old) {
        Table t = read_table(path);
        std::string text;
        auto line = [&](const std::vector<std::string>& cells) {
            for (auto& cell : cells) text += cell + (&cell == &cells.back() ? "\n" : ",");
        };
        line(t.columns);
        if (text != pending) fail("%s: the header is not %s", path.c_str(), header.c_str());
        pending.clear();
        for (size_t r = 0; r < t.rows.size(); r++)
            if (keep(t.text(r, "recipe"), t.whole(r, "seed"), t.whole(r, "step"))) line(t.rows[r]);
        if (text != read_file(path, SIZE_MAX)) write_file(path, text);
    }
    fd = open(path.c_str(), O_CREAT | (keep ? 0 : O_EXCL) | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) cannot_write(path, errno);
    flush();
}
Csv::~Csv() { close(fd); }
void Csv::row(const std::vector<std::string>& cells) {
    if (cells.size() != columns) fail("%s: %zu cells for %zu columns", path.c_str(), cells.size(), columns);
    for (size_t i = 0; i < columns; i++) {
        if (cells[i].find_first_of(",\"\r\n") < cells[i].size())
            fail("%s: the cell %s would need quotes", path.c_str(), quote(cells[i]).c_str());
        pending += cells[i] + (i + 1 < columns ? "," : "\n");
    }
}
void Csv::flush() {
    for (std::string text = std::exchange(pending, ""); !text.empty();) {
        ssize_t n = write(fd, text.data(), text.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int why = errno;
            if (ftruncate(fd, whole) != 0) note("%s may end in half a line", path.c_str());
            cannot_write(path, why);
        }
        text.erase(0, (size_t)n);
    }
    whole = lseek(fd, 0, SEEK_END);
}

void Csv::sync() {
    if (fsync(fd) != 0 && errno != EINVAL) cannot_write(path, errno);
}

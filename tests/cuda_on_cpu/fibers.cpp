// Blocks of GPU threads as fibers with a switch of our own, and the operations that threads do together.
#include "standin.h"
#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// --- the switch --------------------------------------------------------------------------------------------------
// switch_stack(&mine, other) saves what a call has to preserve on this stack, this stack's end in `mine`, and returns
// on the other one, to where that was left.
#if defined(__x86_64__)
extern "C" void ulp_switch_stack(void** mine, void* other);
asm(".text\n.globl ulp_switch_stack\n.type ulp_switch_stack, @function\nulp_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size ulp_switch_stack, . - ulp_switch_stack\n");
static void* new_stack(char* end, void (*entry)()) {
    void** sp = (void**)((uintptr_t)end & ~(uintptr_t)15) - 1; // as after a call: 8 below a multiple of 16
    *--sp = (void*)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
extern "C" void ulp_switch_stack(void** mine, void* other);
asm(".text\n.globl ulp_switch_stack\n.type ulp_switch_stack, %function\nulp_switch_stack:\n"
    "  sub sp, sp, #160\n  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n"
    ".size ulp_switch_stack, . - ulp_switch_stack\n");
static void* new_stack(char* end, void (*entry)()) {
    void** sp = (void**)((uintptr_t)end & ~(uintptr_t)15) - 20;
    std::fill_n(sp, 20, nullptr);
    sp[11] = (void*)entry; // x30
    return sp;
}
#else
#include <ucontext.h>
static void ulp_switch_stack(void** mine, void* other) {
    ucontext_t here;
    *mine = &here;
    swapcontext(&here, (ucontext_t*)other);
}
static void* new_stack(char* end, void (*entry)()) { // the context lies at the end of the stack it is for
    ucontext_t* c = (ucontext_t*)(((uintptr_t)end - sizeof(ucontext_t)) & ~(uintptr_t)63);
    getcontext(c);
    c->uc_link = nullptr, c->uc_stack.ss_size = 32 * 1024, c->uc_stack.ss_sp = (char*)c - c->uc_stack.ss_size;
    makecontext(c, entry, 0);
    return c;
}
#endif

#ifdef ASAN
constexpr size_t STACK = 256 * 1024;
#else
constexpr size_t STACK = 64 * 1024;
#endif
constexpr uint64_t CANARY = 0x0123456789abcdef;
enum class State { fresh, ready, at_warp, at_block, returned };

struct Fiber {
    int index = 0;
    State state = State::fresh;
    char* stack = nullptr; // from the pool, while it runs
    void* sp = nullptr;
    Meeting where;
    void* operand = nullptr;
    struct Copy {
        void* to;
        const void* from;
        int bytes, size;
    };
    std::vector<Copy> open;               // copies not committed yet
    std::deque<std::vector<Copy>> groups; // committed, not waited for
    void* fake_stack = nullptr;           // ASan's
};
Fiber* this_fiber;
ThreadIndex this_thread;

namespace {

std::vector<Fiber> fibers;
std::vector<std::unique_ptr<char, decltype(&free)>> chunks;
std::vector<char*> pool; // of stacks in them, the last one given back on top
void* scheduler_sp;
const std::function<void()>* kernel_thread;
std::string failure; // of the kernel that runs
std::unique_ptr<char, decltype(&free)> shared(nullptr, free);
size_t shared_size;
std::mt19937_64 dice;

char* take_stack() {
    if (pool.empty()) {
        const int many = 32;
        // not a power of two apart, or all of them would want the same lines of the cache
        char* p = (char*)aligned_alloc(64, many * (STACK + 832));
        chunks.emplace_back(p, free);
        for (int i = 0; i < many; i++) pool.push_back(p + i * (STACK + 832));
    }
    char* s = pool.back();
    pool.pop_back();
    memcpy(s, &CANARY, 8);
    return s;
}
#ifdef ASAN
const void* host_bottom;
size_t host_size;
#endif
void to_scheduler(bool for_good = false) {
    Fiber* f = this_fiber;
#ifdef ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &f->fake_stack, host_bottom, host_size);
#endif
    (void)for_good;
    ulp_switch_stack(&f->sp, scheduler_sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(f->fake_stack, &host_bottom, &host_size);
#endif
}
void blame(const std::string& why) {
    if (failure.empty()) failure = why;
}
void entry() {
#ifdef ASAN
    __sanitizer_finish_switch_fiber(nullptr, &host_bottom, &host_size);
#endif
    try {
        (*kernel_thread)();
    } catch (const std::exception& e) { // cannot be thrown across stacks
        blame(format("thread %d of block %d: %s", this_thread.thread, this_thread.block, e.what()));
    }
    this_fiber->state = State::returned;
    to_scheduler(true);
    abort();
}
void run(Fiber& f) {
    if (f.state == State::fresh) {
        f.stack = take_stack();
#ifdef ASAN
        ASAN_UNPOISON_MEMORY_REGION(f.stack, STACK); // of what was there before
#endif
        f.sp = new_stack(f.stack + STACK, entry);
    }
    f.state = State::ready;
    this_fiber = &f, this_thread.thread = f.index;
#ifdef ASAN
    void* fake;
    __sanitizer_start_switch_fiber(&fake, f.stack, STACK);
#endif
    ulp_switch_stack(&scheduler_sp, f.sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    this_fiber = nullptr;
    if (f.state != State::returned) return;
    uint64_t canary;
    memcpy(&canary, f.stack, 8);
    if (canary != CANARY) blame("a thread needs more stack than the stand-in has");
    pool.push_back(f.stack), f.stack = nullptr;
}
std::string where_is(const Fiber& f) {
    if (f.state == State::returned) return format("thread %d has returned", f.index);
    const char* slash = strrchr(f.where.at.file, '/');
    return format("thread %d is at %s (%s:%d%s)", f.index, f.where.what, slash ? slash + 1 : f.where.at.file,
                  f.where.at.line, f.where.detail ? format(", %d", (int)f.where.detail).c_str() : "");
}
bool together(const Fiber& a, const Fiber& b) {
    return a.state == b.state &&
           (a.state == State::returned ||
            (a.where.what == b.where.what && a.where.detail == b.where.detail && a.where.at.line == b.where.at.line));
}
// The members of a warp, or of the whole block, have to be at one place; says who is not.
bool agree(Fiber* f, int n, bool warp) {
    for (int i = 1; i < n; i++)
        if (!together(f[0], f[i])) {
            std::string who = format("threads of block %d", this_thread.block);
            if (warp) who = format("lanes of warp %d of block %d", f->index / 32, this_thread.block);
            blame(format("%s part ways: %s, %s", who.c_str(), where_is(f[0]).c_str(), where_is(f[i]).c_str()));
            return false;
        }
    return true;
}
template <class T> void arrange(std::vector<T>& v) { // 0, 1, .. in the order of the day
    for (size_t i = 0; i < v.size(); i++) v[i] = (T)(standin.order == Order::descending ? v.size() - 1 - i : i);
    if (standin.order == Order::shuffled) std::shuffle(v.begin(), v.end(), dice);
}
// One warp, from where it stands to its next meeting.
void step(int warp, std::vector<int>& lanes) {
    Fiber* f = &fibers[warp * 32];
    arrange(lanes);
    for (int l : lanes) {
        run(f[l]);
        if (!failure.empty()) return;
    }
    if (!agree(f, 32, true)) return;
    if (f->state == State::returned) standin.warps++;
    if (f->state != State::at_warp) return;
    void* operands[32];
    for (int l = 0; l < 32; l++) operands[l] = f[l].operand, f[l].state = State::ready;
    standin.meetings++;
    try {
        f->where.happen(operands);
    } catch (const std::exception& e) { blame(format("warp %d of block %d: %s", warp, this_thread.block, e.what())); }
}
void run_block(int block, int threads) {
    this_thread.block = block, this_thread.threads = threads;
    if (shared_size) memset(shared.get(), 0xff, shared_size);
    int warps = threads / 32;
    if ((int)fibers.size() < threads) fibers.resize(threads);
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.index = i, f.state = State::fresh, f.fake_stack = nullptr, f.open.clear(), f.groups.clear();
        if (f.stack) pool.push_back(f.stack), f.stack = nullptr; // of a block that failed
    }
    static std::vector<int> turns, lanes(32), able;
    auto can_run = [&](int w) { return fibers[w * 32].state == State::fresh || fibers[w * 32].state == State::ready; };
    for (;;) {
        turns.resize(warps), arrange(turns);
        if (standin.order == Order::shuffled) // one step each, at random; else a warp runs as far as it can
            for (;;) {
                able.clear();
                for (int w : turns)
                    if (can_run(w)) able.push_back(w);
                if (able.empty()) break;
                step(able[dice() % able.size()], lanes);
                if (!failure.empty()) return;
            }
        else
            for (int w : turns)
                while (can_run(w)) {
                    step(w, lanes);
                    if (!failure.empty()) return;
                }
        if (!agree(fibers.data(), threads, false)) return;
        if (fibers[0].state == State::returned) return;
        standin.barriers++;
        for (int i = 0; i < threads; i++) fibers[i].state = State::ready;
    }
}
} // namespace

std::string run_grid(size_t grid, int threads, size_t shared_bytes, const std::function<void()>& thread) {
    kernel_thread = &thread, failure.clear();
    shared_size = shared_bytes;
    void* p = nullptr; // of exactly this size, so that ASan sees what lies beyond
    if (shared_bytes && posix_memalign(&p, 128, shared_bytes)) return "no memory for shared memory";
    shared.reset((char*)p);
    dice.seed(standin.seed + standin.launches);
    std::vector<int> blocks(grid);
    arrange(blocks);
    for (int b : blocks) {
        run_block(b, threads);
        if (!failure.empty()) break;
    }
    return failure;
}

// --- what threads do together ------------------------------------------------------------------------------------
void meet_warp(const Meeting& m, void* operand) {
    if (!this_fiber) fail("%s outside a kernel", m.what);
    this_fiber->where = m, this_fiber->operand = operand, this_fiber->state = State::at_warp;
    to_scheduler();
}
void meet_block(const Meeting& m) {
    if (!this_fiber) fail("%s outside a kernel", m.what);
    this_fiber->where = m, this_fiber->state = State::at_block;
    to_scheduler();
}
void* shared_bytes_of_block(size_t bytes) {
    if (bytes > shared_size) fail("%zu bytes of shared memory, but the launch has %zu", bytes, shared_size);
    return shared.get();
}
void check_shared(const void* p, size_t bytes, size_t align, const char* what) {
    const char* at = (const char*)p;
    if (at < shared.get() || at + bytes > shared.get() + shared_size)
        fail("%s: the address is not in the block's %zu bytes of shared memory", what, shared_size);
    if ((uintptr_t)p % align) fail("%s: the address is not aligned to %zu bytes", what, align);
}

namespace {
float bf16_value(uint32_t word, int half) {
    uint32_t u = half ? word & 0xffff0000 : word << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
struct Rows {
    uint32_t r[4];
    const void* row;
};
template <bool transposed> void load_matrices(void* const* lanes) {
    uint16_t m[4][8][8];
    for (int l = 0; l < 32; l++) {
        const void* row = ((Rows*)lanes[l])->row;
        check_shared(row, 16, 16, "ldmatrix");
        memcpy(m[l / 8][l % 8], row, 16);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int r = l / 4, c = l % 4 * 2;
            uint32_t low = transposed ? m[i][c][r] : m[i][r][c], high = transposed ? m[i][c + 1][r] : m[i][r][c + 1];
            ((Rows*)lanes[l])->r[i] = low | high << 16;
        }
}
struct Fragments {
    float d[4];
    uint32_t a[4], b[2];
};
void multiply(void* const* lanes) {
    float a[16][16], b[16][8]; // (m, k), (k, n)
    double d[16][8];
    for (int l = 0; l < 32; l++) {
        const Fragments& f = *(Fragments*)lanes[l];
        int g = l / 4, t = l % 4 * 2;
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 8 + h] = bf16_value(f.a[i], h);
            for (int i = 0; i < 2; i++) b[t + i * 8 + h][g] = bf16_value(f.b[i], h);
            for (int i = 0; i < 2; i++) d[g + i * 8][t + h] = f.d[i * 2 + h];
        }
    }
    for (int m = 0; m < 16; m++) // exact products, one rounding
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) d[m][n] += (double)a[m][k] * b[k][n];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) ((Fragments*)lanes[l])->d[i] = (float)d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}
} // namespace

void ldmatrix(uint32_t (&r)[4], const void* row, Place at) {
    Rows o = {{}, row};
    meet_warp({"ldmatrix", 0, at, load_matrices<false>}, &o);
    memcpy(r, o.r, sizeof r);
}
void ldmatrix_transposed(uint32_t (&r)[4], const void* row, Place at) {
    Rows o = {{}, row};
    meet_warp({"ldmatrix_transposed", 0, at, load_matrices<true>}, &o);
    memcpy(r, o.r, sizeof r);
}
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place at) {
    Fragments o = {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    meet_warp({"mma", 0, at, multiply}, &o);
    memcpy(d, o.d, sizeof d);
}
void copy_later(void* to, const void* from, int bytes, int size) {
    check_shared(to, size, size, "cp_async");
    if ((uintptr_t)from % size) fail("cp_async: the source is not aligned to %d bytes", size);
    if (bytes < 0 || bytes > size) fail("cp_async: %d bytes of %d", bytes, size);
    memset(to, 0xff, size);
    this_fiber->open.push_back({to, from, bytes, size});
}
void cp_async_commit() {
    this_fiber->groups.push_back(std::move(this_fiber->open));
    this_fiber->open.clear();
}
void cp_async_wait_but(int groups) {
    for (auto& g = this_fiber->groups; (int)g.size() > groups; g.pop_front())
        for (const Fiber::Copy& c : g.front()) {
            memset(c.to, 0, c.size);
            memcpy(c.to, c.from, c.bytes);
        }
}

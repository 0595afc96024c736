// On a GPU every operation, and a model that samples or trains, returns the CPU's bits by its row functions.
#include "both_machines.h"
#include "documented.h"
#include "drive.h"

// Rows are aligned to packs where C is a multiple of 4 and the base is offset by 0 or 4 elements, else not.
TEST_CASE("every operation returns the host's bits, on aligned and on misaligned rows") {
    for (int C : {1, 3, 4, 31, 64, 127, 130, 132, 257})
        for (int at : {0, 1, 4}) {
            INFO("C ", C, " offset ", at);
            const int N = C == 130 || C == 132 ? 66 : 6, V = C, B = 3, T = N / 3;
            const size_t n = (size_t)N * C;
            auto acts = [&](uint64_t seed) { return normals<act>(n + 4, seed); };
            auto reals = [&](size_t n, uint64_t seed) { return normals<real>(n + 4, seed); };
            const Acts x = acts(1), dy = acts(2), dx0 = acts(5);
            const Reals w = reals(C, 3), b = reals(C, 4), wte0 = reals(V * C, 9), wpe0 = reals(T * C, 10),
                        p0 = reals(n, 11);
            const Reals m0 = reals(n, 12), grad = reals(n, 13);
            check_both_machines("layernorm", [&](Reals& all) {
                Acts y(n + 4), dx = dx0;
                Reals mean(N), rstd(N), dw = reals(C, 6), db = reals(C, 7), partial(2 * panels(N) * C + 4);
                layernorm_forward(&y[at], mean.data(), rstd.data(), &x[at], &w[at], &b[at], N, C);
                layernorm_backward(&dx[at], &dw[at], &db[at], &dy[at], &x[at], mean.data(), rstd.data(), &w[at],
                                   &partial[at], N, C);
                append(all, y), append(all, dx), append(all, mean), append(all, rstd), append(all, dw), append(all, db);
                Acts y2(n + 4), dx2 = dx0;
                for (int i = 0; i < N; i++) {
                    real m, r;
                    size_t row = at + (size_t)i * C;
                    documented_layernorm(&y2[row], &m, &r, &x[row], &w[at], &b[at], C);
                    documented_layernorm_backward(&dx2[row], &dy[row], &x[row], m, r, &w[at], C);
                }
                check_same_bits("y, documented order", y, y2), check_same_bits("dx, documented order", dx, dx2);
            });
            check_both_machines("gelu, residual", [&](Reals& all) {
                Acts y(n + 4), z(n + 4), dx = dy;
                gelu_forward(&y[at], &x[at], 1, (int)n);
                gelu_backward(&dx[at], &dx[at], &x[at], 1, (int)n);
                residual_forward(&z[at], &x[at], &y[at], n);
                append(all, y), append(all, z), append(all, dx);
                fill_zero(&z[at], n * sizeof z[0]);
                append(all, z);
            });
            check_both_machines("classifier", [&](Reals& all) {
                for (bool gradient : {false, true}) {
                    Acts logits = x;
                    Reals loss(N, NAN);
                    std::vector<int> targets(N);
                    for (int i = 0; i < N; i++) targets[i] = i % 4 == 1 ? -1 : i * 5 % V;
                    classifier(loss.data(), &logits[at], targets.data(), 0.1f, gradient, N, V);
                    append(all, loss), append(all, logits);
                }
            });
            check_both_machines("bias", [&](Reals& all) {
                Reals db = reals(C, 8), partial(panels(N) * C + 4);
                bias_backward(&db[at], &dy[at], &partial[at], N, C);
                append(all, db);
            });
            check_both_machines("embedding", [&](Reals& all) {
                Reals wte = wte0, wpe = wpe0;
                Acts out(n + 4);
                std::vector<int> tokens(N), distinct, first, positions;
                for (int i = 0; i < N; i++) tokens[i] = i * i % V;
                for (int v = 0; v < V; v++) {
                    size_t before = positions.size();
                    for (int i = 0; i < N; i++)
                        if (tokens[i] == v) positions.push_back(i);
                    if (positions.size() > before) distinct.push_back(v), first.push_back((int)before);
                }
                first.push_back(N);
                embedding_forward(&out[at], tokens.data(), &wte[at], &wpe[at], B, T, C);
                TokenIndex index = {(int)distinct.size(), distinct.data(), first.data(), positions.data()};
                embedding_backward_tokens(&wte[at], &dy[at], index, N, C);
                embedding_backward_positions(&wpe[at], &dy[at], B, T, C);
                append(all, out), append(all, wte), append(all, wpe);
            });
            check_both_machines("adamw", [&](Reals& all) {
                Reals p = p0, m = m0, v(n + 4, 0.5f), squares(pieces(n));
                Acts q(n + 4);
                round_to_operand(&q[at], &p[at], n);
                append(all, q);
                std::vector<StepResult> result(1);
                result[0].factor = 0.7f;
                adamw(&p[at], &q[at], &m[at], &v[at], &grad[at], result.data(), n,
                      {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 0.6f});
                squares_of(squares.data(), &grad[at], n);
                append(all, p), append(all, q), append(all, m), append(all, v), append(all, squares);
            });
        }
}
TEST_CASE("attention's row functions return the host's bits, heads of any size") {
    for (Heads d : {Heads{1, 1, 1, 1}, {2, 7, 3, 5}, {1, 40, 2, 4}, {1, 34, 1, 33}, {1, 131, 1, 2}, {1, 9, 1, 130}})
        for (int at : {0, 1}) {
            INFO("B ", d.B, " T ", d.T, " NH ", d.NH, " HS ", d.HS, " offset ", at);
            size_t n = d.B * d.T * d.C(), square = d.rows() * d.T;
            const Acts qkv = normals<act>(3 * n + 1, 1), dout = normals<act>(n + 1, 2);
            check_both_machines("attention", [&](Reals& all) {
                Acts o(n + 1), dqkv(3 * n + 1), p(square, act(NAN)), ds(square, act(NAN));
                Reals lse(d.rows()), s(square, NAN), dp(square, NAN); // NaN: a lane that reads too early shows
                AttentionScratch scratch = {s.data(), dp.data(), p.data(), ds.data()};
                attention_forward(&o[at], lse.data(), &qkv[at], scratch, d);
                std::fill(s.begin(), s.end(), NAN), std::fill(p.begin(), p.end(), act(NAN));
                attention_backward(&dqkv[at], &dout[at], &qkv[at], &o[at], lse.data(), scratch, d);
                append(all, o), append(all, lse), append(all, dqkv);
                for (real x : all) REQUIRE(std::isfinite(x));
            });
        }
}
TEST_CASE("a model that samples with a cache, in every format, returns the host's bits") {
    for (Config c : {Config{2, 3, 15, 7, 23}, {1, 2, 8, 9, 130}})
        for (Format f : {BF16, E4M3, E5M2})
            check_both_machines("cache", [&](Reals& all) {
                GPT g;
                KvCache cache;
                allocate(g, c, Use::inference, 1, c.seq_len), allocate(cache, f, c.layers, c.seq_len, c.channels);
                initialise(g, 3);
                g.kv = f;
                std::fill(g.scratch.s, g.scratch.s + c.heads * c.seq_len * c.seq_len, NAN);
                for (int done = 0, n; done < c.seq_len; done += n) {
                    n = done ? 1 : 3;
                    for (int i = 0; i < n; i++) g.tokens[i] = (done + i) * (done + i) % c.vocab;
                    gpt_next(g, n, &cache);
                    all.insert(all.end(), g.logits, g.logits + c.vocab);
                }
                release(g), release(cache);
            });
}
TEST_CASE("two training steps of a whole model return the host's bits") {
    for (Config c : {Config{2, 3, 15, 7, 23}, {1, 2, 8, 9, 130}})
        check_both_machines("model", [&](Reals& all) {
            const int B = 2, T = c.seq_len, N = B * T;
            GPT g;
            allocate(g, c, Use::training, B, T);
            initialise(g, 3);
            std::vector<int> tokens(N), targets(N);
            for (int i = 0; i < N; i++) tokens[i] = i * i % c.vocab, targets[i] = i == 2 ? -1 : i * 3 % c.vocab;
            for (int t = 1; t <= 2; t++) {
                g.pass.micro = t - 1;
                set_batch(g, tokens, targets);
                all.push_back((real)gpt_forward(g, B, T, 1.0f / N));
                gpt_backward(g, B, T);
                all.push_back((real)gradient_norm(g, 1));
                update(g, t, 1e-2, 0.1);
            }
            for_each_param(g, [&](const std::string&, Param& p) {
                all.insert(all.end(), p.w, p.w + p.size()), all.insert(all.end(), p.grad, p.grad + p.size());
            });
            release(g);
        });
}

# Draws an SVG from tables of a run (CSV files with a header): lines, or bars. Readable in light and dark, and without
# colours: series differ by dashes and bear their names.
#
#   awk -f docs/experiments/figure.awk -v x=step -v y=loss -v by=recipe runs/X/evals.csv > figure.svg
#
#   x= y= by=     columns: where along the axis, what is drawn, which line or bar; without by, there is one
#   where=        rows that count: "operand=dy layer~mlp step=1"; = is equal, ~ matches a pattern; all must hold
#   of=max        of rows that share x and by: their mean (normally), max or min
#   bars=1        the values of x are names; a bar for each, or one for each of `by`
#   logscale=y    logarithmic axis: x, y or xy. What it has no place for is left out, unless low= is given
#   from= to=     of x that are drawn; low= high= of y: what lies beyond is drawn at the border
#   smooth=0.9    weight of the past in a moving average along x
#   strip=REGEX   is taken out of the names of x and by;  title= xlabel= ylabel=  are texts
function fail(why) { print "figure.awk: " why > "/dev/stderr"; failed = 1; exit 1 }
function is_number(s) { return s ~ /^[-+]?[0-9.]+(e[-+]?[0-9]+)?$/ }
function text_of(s) { gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/>/, "\\&gt;", s); return s }
function name_of(s) { if (strip != "") gsub(strip, "", s); return s }
function short(v,    size) {
    size = v < 0 ? -v : v
    return v == 0 ? "0" : sprintf(size >= 100000 || size < 0.001 ? "%.3g" : "%.4g", v)
}
function put(X, Y, class, s) { printf "<text x='%.1f' y='%.1f' class='%s'>%s</text>\n", X, Y, class, text_of(s) }
function rule(X, Y, X2, Y2, class) { printf "<path class='%s' d='M%.1f %.1fL%.1f %.1f'/>\n", class, X, Y, X2, Y2 }
function box(s, X, Y, w) { printf "<rect class='f%d' x='%.1f' y='%.1f' width='%.1f' height='11'/>\n", s, X, Y, w }
# An axis a from least[a] to most[a] over pixels p0[a] to p1[a].
function along(a, v) {
    if (is_log[a]) v = log(v)
    return p0[a] + (p1[a] - p0[a]) * (v - least[a]) / (most[a] - least[a])
}
function has_place(a, v) { return !is_log[a] || v > 0 }
# Where its ticks are: tick[1..ticks]. Opens the axis up to round numbers where it is not fixed.
function make_ticks(a, open_low, open_high,    step, k, v, e, span) {
    ticks = 0
    if (!(a in least)) fail("no row has a number that can be drawn: x=" x " y=" y " where=" where)
    if (is_log[a]) {
        if (open_low) { e = least[a] / log(10) - 0.02; least[a] = (int(e) - (e < int(e))) * log(10) }
        for (e = -60; e <= 60; e++) # decades, or 1 2 5 of them, or every third
            for (k = 1; k <= 5; k += k == 1 ? 1 : 3) {
                v = exp(e * log(10)) * k
                span = (most[a] - least[a]) / log(10)
                if ((k > 1 && span > 2.5) || (span > 8 && e % 3)) continue
                if (log(v) > least[a] - 1e-9 && log(v) < most[a] + 1e-9) tick[++ticks] = v
            }
        return
    }
    if (most[a] == least[a]) most[a] += most[a] ? (most[a] > 0 ? most[a] : -most[a]) / 2 : 1
    span = most[a] - least[a]
    step = exp(log(10) * int(log(span / 4) / log(10) + 100) - 100 * log(10))
    step *= span / step > 20 ? 5 : span / step > 8 ? 2 : 1
    k = least[a] / step; k = int(k) - (k < int(k))
    if (open_low) least[a] = k * step
    if (open_high) { e = most[a] / step; most[a] = step * (int(e) + (e > int(e) + 1e-9)) }
    for (; k * step <= most[a] + step / 1e6; k++) if (k * step >= least[a] - step / 1e6) tick[++ticks] = k * step
}
function extend(a, v) {
    if (!has_place(a, v)) return
    if (is_log[a]) v = log(v)
    if (!(a in least) || v < least[a]) least[a] = v
    if (!(a in most) || v > most[a]) most[a] = v
}
function limit(a, lo, hi) {
    if (lo != "") least[a] = is_log[a] ? log(lo) : lo + 0
    if (hi != "") most[a] = is_log[a] ? log(hi) : hi + 0
}
function clamp(v) { if (low != "" && v < low + 0) v = low + 0; return high != "" && v > high + 0 ? high + 0 : v }
BEGIN {
    FS = ","
    conditions = split(where, condition, " ")
    for (i = 1; i <= conditions; i++) {
        match(condition[i], /[=~]/)
        key[i] = substr(condition[i], 1, RSTART - 1); kind[i] = substr(condition[i], RSTART, 1)
        value[i] = substr(condition[i], RSTART + 1)
    }
    is_log["x"] = log_axis("x"); is_log["y"] = log_axis("y")
}
function log_axis(a) { return index(logscale, a) > 0 }
FNR == 1 {
    split("", column)
    for (i = 1; i <= NF; i++) column[$i] = i
    needed[1] = x; needed[2] = y; needed[3] = by == "" ? x : by
    for (i = 1; i <= conditions; i++) needed[3 + i] = key[i]
    for (i = 1; i <= 3 + conditions; i++) if (!(needed[i] in column)) fail(FILENAME " has no column " needed[i])
    next
}
{
    for (i = 1; i <= conditions; i++) {
        v = $column[key[i]]
        if (kind[i] == "=" ? v != value[i] : v !~ value[i]) next
    }
    X = $column[x]; Y = $column[y]; S = by == "" ? "" : name_of($column[by])
    if (bars) X = name_of(X)
    if (!(S in colour)) colour[S] = colours++ # also without numbers: figures of one run agree
    if (!is_number(Y) || (!bars && ((from != "" && X < from + 0) || (to != "" && X > to + 0)))) next
    if (!(S in length_of)) names[nseries++] = S
    if (!((S, X) in count)) xs[S, length_of[S]++] = X
    if (!(X in category)) { category[X] = 1; category_name[ncategories++] = X }
    n = count[S, X]++
    if (of == "max") total[S, X] = n && total[S, X] > Y + 0 ? total[S, X] : Y + 0
    else if (of == "min") total[S, X] = n && total[S, X] < Y + 0 ? total[S, X] : Y + 0
    else total[S, X] += Y
}
END {
    if (failed) exit 1
    for (s = 0; s < nseries; s++) {
        S = names[s]; width = length(S) > width ? length(S) : width
        for (i = 0; i < length_of[S]; i++) {
            X = xs[S, i]; v = total[S, X] / (of == "max" || of == "min" ? 1 : count[S, X])
            if (smooth && i) v = smooth * past + (1 - smooth) * v
            at[S, X] = past = v
            extend("y", clamp(v)); if (!bars) extend("x", X + 0)
        }
    }
    if (bars) for (i = 0; i < ncategories; i++) if (length(category_name[i]) > wide) wide = length(category_name[i])
    if (bars && !is_log["y"]) extend("y", 0)
    W = 800; top = (title != "" ? 34 : 12) + (bars && nseries > 1 ? 20 * nseries : bars ? 0 : 18)
    bar = 13; H = bars ? top + ncategories * (nseries * bar + 9) + 46 : 400
    left = bars ? 16 + 8.4 * wide : 62; right = W - (bars ? 70 : 24 + 6.9 * width)
    p0["x"] = left; p1["x"] = right; p0["y"] = bars ? left : H - 44; p1["y"] = bars ? right : top + 6
    printf "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' height='%d' role='img' ", W, H, W, H
    printf "aria-label='%s'>\n", text_of(title)
    split("#111 #0072b2 #d55e00 #00855f #b0478f #a87400 #888 #49a6d9 #0072b2 #d55e00", light, " ")
    split("#eee #56b4e9 #ff8b45 #2fc79a #e58bc4 #e6b333 #999 #b5e0fa #56b4e9 #ff8b45", dark, " ")
    split("none|7 3|2 3|10 3 2 3|5 2|12 4|1 2|8 2 2 2 2 2|2 3|7 3", dash, "|")
    print "<style>.bg{fill:#fff}text{fill:#222;font:13px system-ui,sans-serif}.n{font-size:12px}"
    print ".t{font-weight:600;font-size:15px}.e{text-anchor:end}.m{text-anchor:middle}"
    print ".g,.a,.k{fill:none;stroke:#ddd}.a{stroke:#888}.k{stroke:#999}"
    print ".l{fill:none;stroke-width:2;stroke-linejoin:round}"
    for (s = 0; s < 10; s++) 
        printf ".s%d{stroke:%s;stroke-dasharray:%s}.f%d{fill:%s}\n", s, light[s + 1], dash[s + 1], s, light[s + 1]
    print "@media(prefers-color-scheme:dark){.bg{fill:#161618}text{fill:#ddd}"
    print ".g{stroke:#333}.a{stroke:#777}.k{stroke:#666}"
    for (s = 0; s < 10; s++) printf ".s%d{stroke:%s}.f%d{fill:%s}", s, dark[s + 1], s, dark[s + 1]
    print "}</style>\n<rect class='bg' width='100%' height='100%' rx='6'/>"
    if (colours > 10) fail(colours " series; it draws 10. hint: where=")
    if (title != "") put(16, 24, "t", title)
    limit("y", low, high); make_ticks("y", low == "", high == "")
    if (bars) draw_bars(); else draw_lines()
    print "</svg>"
}
function draw_bars(    i, s, Y, v, X, base) {
    for (i = 1; i <= ticks; i++) {
        X = along("y", tick[i]); rule(X, top, X, H - 40, "g"); put(X, H - 24, "m", short(tick[i]))
    }
    put(right, H - 7, "e", ylabel == "" ? y : ylabel)
    for (s = 0; s < nseries && nseries > 1; s++) {
        box(colour[names[s]], left, top - 20 * (nseries - s) + 3, 12)
        put(left + 18, top - 20 * (nseries - s) + 13, "", names[s])
    }
    base = is_log["y"] ? left : along("y", least["y"] > 0 ? least["y"] : 0)
    for (i = 0; i < ncategories; i++) {
        Y = top + 5 + i * (nseries * bar + 9)
        put(left - 6, Y + nseries * bar / 2 + 4.5, "e", category_name[i])
        for (s = 0; s < nseries; s++) {
            if (!((names[s], category_name[i]) in at)) continue
            v = at[names[s], category_name[i]]; X = has_place("y", clamp(v)) ? along("y", clamp(v)) : left
            box(nseries > 1 ? colour[names[s]] : 1, X < base ? X : base, Y + s * bar, X < base ? base - X : X - base)
            put((X > base ? X : base) + 4, Y + s * bar + 10, "", short(v))
        }
    }
    rule(base, top, base, H - 40, "a")
}
function draw_lines(    i, s, S, X, Y, v, d, pen, last, order, n, j, k) {
    for (i = 1; i <= ticks; i++) {
        Y = along("y", tick[i]); rule(left, Y, right, Y, "g"); put(left - 6, Y + 4.5, "e", short(tick[i]))
    }
    put(16, top - 4, "", ylabel == "" ? y : ylabel)
    limit("x", from, to); make_ticks("x", 0, 0)
    for (i = 1; i <= ticks; i++) {
        X = along("x", tick[i]); rule(X, H - 44, X, H - 40, "a"); put(X, H - 24, "m", short(tick[i]))
    }
    put(right, H - 7, "e", xlabel == "" ? x : xlabel); rule(left, H - 44, right, H - 44, "a")
    for (s = nseries - 1; s >= 0; s--) { # the first on top
        S = names[s]; d = ""; pen = "M"; last = -9
        for (i = 0; i < length_of[S]; i++) {
            v = clamp(at[S, xs[S, i]])
            if (!has_place("y", v) || !has_place("x", xs[S, i])) { pen = "M"; continue }
            X = along("x", xs[S, i]); Y = along("y", v); end_x[s] = X; end_y[s] = Y
            if (smooth && pen == "L" && X - last < 2) continue
            d = d sprintf("%s%.1f %.1f", pen, X, Y); pen = "L"; last = X
        }
        printf "<path class='l s%d' d='%s'/>\n", colour[S], d
        if (s in end_y) { # by height: labels are pushed apart
            for (j = n++; j > 0 && end_y[order[j - 1]] > end_y[s]; j--) order[j] = order[j - 1]
            order[j] = s
        }
    }
    for (k = 0; k < n && nseries > 1; k++) { # each 15 below the one above it, none below the axis
        s = order[k]; label[k] = end_y[s] + 4.5
        if (k && label[k] < label[k - 1] + 15) label[k] = label[k - 1] + 15
    }
    for (k = n - 1; k >= 0 && nseries > 1; k--) {
        j = k == n - 1 ? H - 40 : label[k + 1] - 15
        if (label[k] > j) label[k] = j
        s = order[k]; rule(end_x[s] + 2, end_y[s], right + 12, label[k] - 4.5, "k")
        put(right + 15, label[k], "n f" colour[names[s]], names[s])
    }
}
